#include "core/comm/reduce.h"

#include <algorithm>

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

int64_t all_reduce_max(ProcessGroup& group, int64_t mine) {
  std::vector<int64_t> all(static_cast<size_t>(group.world()));
  group.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)))
      ->wait();
  return *std::max_element(all.begin(), all.end());
}

}  // namespace nibble
