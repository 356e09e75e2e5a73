#include "core/base/own_binary.h"

#include <unistd.h>

#include <array>
#include <string_view>

#include "core/base/fail.h"

namespace nibble {

std::filesystem::path own_binary() {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length <= 0) fail(ErrorCode::kInternal, "cannot find our own binary");
  return std::string_view(path.data(), static_cast<size_t>(length));
}

}  // namespace nibble
