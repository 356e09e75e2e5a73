#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/base/sha256.h"

namespace nibble {

/// weights_sha256, the name of a model's weights: SHA-256 over the bytes of all stored tensors
/// (packed words, scales, BF16), little-endian and row-major, in ascending order of their names in
/// a Hugging Face directory, with nothing between them. `*.weight_shape` tensors, which say again
/// what config.json says, are left out. The same for any cut into files, and for a training
/// checkpoint and what is exported from it. One thread.
class WeightsDigest {
 public:
  /// The next tensor. Names must ascend (checked).
  void add(const std::string& name, std::span<const std::byte> bytes);
  /// 64 lower-case hexadecimal digits. Call once, last.
  std::string finish() { return sha_.finish(); }

 private:
  Sha256 sha_;
  std::string last_name_;
};

}  // namespace nibble
