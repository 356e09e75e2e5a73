#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/ops/backend.h"

namespace nibble {

/// In the spill directory, while it is made.
inline constexpr char kActivationsFile[] = "activations.tmp";

/// Where activations of many tokens are kept.
struct StreamPlace {
  bool is_on_device = false;              ///< else in host memory
  std::filesystem::path spill_directory;  ///< not empty: in a nameless file there, mapped
};

/// A row of activations for each of many tokens, batch by batch, between passes over them.
class TokenRows {
 public:
  /// `tokens`: of each batch. Borrows `backend`, whose dtype the rows have.
  TokenRows(std::span<const int64_t> tokens, int64_t width, const ops::Backend& backend,
            const StreamPlace& place);
  /// [tokens, width] on the backend's device.
  at::Tensor load(size_t batch) const { return rows_[batch].to(backend_.options().device()); }
  void store(size_t batch, const at::Tensor& value) { rows_[batch].copy_(value); }

 private:
  const ops::Backend& backend_;
  std::vector<at::Tensor> rows_;
};

}  // namespace nibble
