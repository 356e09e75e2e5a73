#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace nibble {

/// How many hidden states are held in all, of all HiddenStates that count here.
struct StateCount {
  int64_t held = 0;
};

/// Hidden states of consecutive positions of one sequence. One thread.
class HiddenStates {
 public:
  /// `count` must outlive this.
  HiddenStates(int64_t width, StateCount& count) : width_(width), count_(count) {}
  ~HiddenStates() { clear(); }
  HiddenStates(const HiddenStates&) = delete;
  HiddenStates& operator=(const HiddenStates&) = delete;

  int64_t begin() const { return begin_; }  ///< first position
  int64_t end() const { return begin_ + size(); }
  int64_t size() const { return std::ssize(values_) / width_; }
  bool contains(int64_t position) const { return position >= begin_ && position < end(); }
  const float* at(int64_t position) const { return values_.data() + (position - begin_) * width_; }

  /// Of a position that is there already: nothing happens. Behind a gap: what was there goes.
  void add(int64_t position, const float* state) {
    if (contains(position) || (size() > 0 && position < begin_)) return;
    if (position != end()) {
      clear();
      begin_ = position;
    }
    values_.insert(values_.end(), state, state + width_);
    ++count_.held;
  }
  void drop_before(int64_t position) {
    const int64_t dropped = std::clamp<int64_t>(position - begin_, 0, size());
    values_.erase(values_.begin(), values_.begin() + dropped * width_);
    begin_ += dropped;
    count_.held -= dropped;
  }
  void clear() { drop_before(end()); }

 private:
  const int64_t width_;
  StateCount& count_;
  int64_t begin_ = 0;
  std::vector<float> values_;
};

}  // namespace nibble
