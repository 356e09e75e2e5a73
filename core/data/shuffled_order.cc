#include "core/data/shuffled_order.h"

#include "core/base/fail.h"
#include "core/base/splitmix64.h"

namespace nibble {

int64_t ShuffledOrder::next() {
  NIBBLE_CHECK(num_left() > 0, "all {} numbers were drawn", size_);
  const int64_t first = num_drawn_++;
  const auto offset =
      static_cast<int64_t>(splitmix64(state_) % static_cast<uint64_t>(size_ - first));
  const auto number_at = [&](int64_t place) {
    const auto moved = moved_.find(place);
    return moved == moved_.end() ? place : moved->second;
  };
  const int64_t drawn = number_at(first + offset);
  moved_[first + offset] = number_at(first);
  moved_.erase(first);
  return drawn;
}

}  // namespace nibble
