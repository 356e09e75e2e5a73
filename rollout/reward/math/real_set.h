#pragma once

#include <optional>
#include <vector>

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// A set of real numbers as separate ranges in order. Ends closer than 1e-12 of their size are one.
class RealSet {
 public:
  struct Range {
    long double low = 0;
    long double high = 0;
    bool low_open = false;
    bool high_open = false;
  };

  /// Of intervals and finite sets with real ends, their unions, intersections and differences, and
  /// the set of real numbers; nullopt for anything else.
  static std::optional<RealSet> of(const Expression& x);

  bool contains(long double x) const;
  bool operator==(const RealSet& other) const;
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  explicit RealSet(std::vector<Range> ranges);
  RealSet united(const RealSet& other) const;
  RealSet complement() const;

  std::vector<Range> ranges_;
};

}  // namespace nibble::math
