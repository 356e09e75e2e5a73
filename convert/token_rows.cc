#include "convert/token_rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_file.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <numeric>

#include "core/base/fail.h"

namespace nibble {
namespace {

// All of it, so that a disk that fills up is an error here and no fault of a mapped page later.
void reserve_file(const std::filesystem::path& path, int64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const int error = fd < 0 ? errno : ::posix_fallocate(fd, 0, bytes);
  if (fd >= 0) ::close(fd);
  if (error == 0) return;
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  fail(error == ENOSPC || error == EDQUOT ? ErrorCode::kResourceExhausted
                                          : ErrorCode::kFailedPrecondition,
       "--spill needs {:.1f} MB for '{}': {}", static_cast<double>(bytes) / 1e6, path.string(),
       std::strerror(error));
}

// A map of a file that nothing names any more.
at::Tensor map_rows(const std::filesystem::path& directory, int64_t tokens, int64_t width,
                    const at::TensorOptions& options) {
  const auto path = directory / kActivationsFile;
  reserve_file(path, tokens * width * static_cast<int64_t>(options.dtype().itemsize()));
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
