#pragma once

#include <cstdint>
#include <unordered_map>

namespace nibble {

/// The numbers from 0 to size - 1 in an order that `seed` decides, the same on every machine:
/// Fisher-Yates from the front on splitmix64, each number drawn when it is asked for, so that
/// memory grows with what was drawn and not with `size`.
class ShuffledOrder {
 public:
  ShuffledOrder(int64_t size, uint64_t seed) : size_(size), state_(seed) {}
  int64_t num_left() const { return size_ - num_drawn_; }
  /// Only while num_left() > 0.
  int64_t next();

 private:
  const int64_t size_;
  uint64_t state_;
  int64_t num_drawn_ = 0;
  std::unordered_map<int64_t, int64_t> moved_;  // places that hold another number than their own
};

}  // namespace nibble
