#pragma once

#include <cstdint>

namespace nibble {

/// How long a step of n tokens takes: a line through recent steps, ms = a + b n. One thread.
class StepTimes {
 public:
  void observe(int64_t num_tokens, double ms);
  /// Whether there were enough steps to say anything.
  bool is_known() const { return weight_ >= 4.0; }
  /// Whether they were of different sizes.
  bool has_slope() const;
  /// Of a further token, never negative; 0 if nothing is known.
  double slope_ms() const;
  /// Of a step of so many tokens, never negative; 0 if nothing is known.
  double at_ms(int64_t num_tokens) const;

 private:
  double variance() const;
  // Moments of (tokens, ms), old ones fading.
  double weight_ = 0.0, n_ = 0.0, t_ = 0.0, nn_ = 0.0, nt_ = 0.0;
};

}  // namespace nibble
