#include "convert/token_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_file.h>

#include <numeric>

namespace nibble {
namespace {

// A map of a file that nothing names any more.
at::Tensor map_rows(const std::filesystem::path& directory, int64_t tokens, int64_t width,
                    const at::TensorOptions& options) {
  const auto path = directory / "activations.tmp";
  at::Tensor mapped = at::from_file(path.string(), /*shared=*/true, tokens * width, options);
  std::filesystem::remove(path);
  return mapped.view({tokens, width});
}

}  // namespace

TokenRows::TokenRows(std::span<const int64_t> tokens, int64_t width, const ops::Backend& backend,
                     const StreamPlace& place)
    : backend_(backend) {
  const int64_t total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  const at::TensorOptions host = at::TensorOptions().dtype(backend.options().dtype());
  at::Tensor mapped;
  if (!place.spill_directory.empty() && total > 0) {
    mapped = map_rows(place.spill_directory, total, width, host);
  }
  int64_t first = 0;
  for (const int64_t count : tokens) {
    rows_.push_back(mapped.defined()
                        ? mapped.narrow(0, first, count)
                        : at::empty({count, width}, place.is_on_device ? backend.options() : host));
    first += count;
  }
}

}  // namespace nibble
