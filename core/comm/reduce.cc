#include "core/comm/reduce.h"

namespace nibble {

void all_reduce_sum(ProcessGroup& group, std::span<double> values) {
  std::vector<double> all(values.size() * static_cast<size_t>(group.world()));
  group.all_gather(std::as_bytes(values), std::as_writable_bytes(std::span(all)))->wait();
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = 0.0;
    for (int r = 0; r < group.world(); ++r)
      values[i] += all[static_cast<size_t>(r) * values.size() + i];
  }
}

}  // namespace nibble
