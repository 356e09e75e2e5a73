#include "core/base/memory_count.h"

#include <array>

namespace nibble {

MemoryCount& memory_count(DeviceKind kind) {
  static std::array<MemoryCount, 4> counts;  // one a DeviceKind
  return counts[static_cast<size_t>(kind)];
}

}  // namespace nibble
