#include "rollout/reward/math/real_set.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "rollout/reward/math/evaluate.h"

namespace nibble::math {
namespace {

constexpr long double kInfinity = std::numeric_limits<long double>::infinity();

bool is_close(long double a, long double b) {
  if (a == b) return true;
  if (std::isinf(a) || std::isinf(b)) return false;
  return std::abs(a - b) <= 1e-12L * std::max({std::abs(a), std::abs(b), 1.0L});
}

}  // namespace

RealSet::RealSet(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
    return a.low != b.low ? a.low < b.low : a.low_open < b.low_open;
  });
  for (Range range : ranges) {
    range.low_open = range.low_open || std::isinf(range.low);
    range.high_open = range.high_open || std::isinf(range.high);
    const bool is_point = is_close(range.low, range.high);
    if (is_point ? range.low_open || range.high_open : range.high < range.low) continue;
    if (ranges_.empty()) {
      ranges_.push_back(range);
      continue;
    }
    Range& last = ranges_.back();
    const bool touches = is_close(range.low, last.high);
    if (touches ? range.low_open && last.high_open : range.low > last.high) {
      ranges_.push_back(range);
    } else if (is_close(range.high, last.high)) {
      last.high_open = last.high_open && range.high_open;
    } else if (range.high > last.high) {
      last.high = range.high;
      last.high_open = range.high_open;
    }
  }
}

std::optional<RealSet> RealSet::of(const Expression& x) {
  if (x->op == Op::kNamedSet) {
    if (x->name != "R") return std::nullopt;
    return RealSet({{-kInfinity, kInfinity, true, true}});
  }
  if (x->op == Op::kInterval || x->op == Op::kSet) {
    std::vector<Range> ranges;
    for (const Expression& arg : x->args) {
      const auto end = is_scalar(arg) ? real_value(arg) : std::nullopt;
      if (!end) return std::nullopt;
      ranges.push_back({*end, *end, false, false});
    }
    if (x->op == Op::kSet) return RealSet(std::move(ranges));
    return RealSet({{ranges[0].low, ranges[1].low, x->left_open, x->right_open}});
  }
  if (x->op != Op::kUnion && x->op != Op::kIntersection && x->op != Op::kDifference) {
    return std::nullopt;
  }
  auto result = of(x->args[0]);
  for (size_t i = 1; i < x->args.size() && result; ++i) {
    auto next = of(x->args[i]);
    if (!next) return std::nullopt;
    if (x->op == Op::kUnion) {
      result = result->united(*next);
    } else {
      if (x->op == Op::kIntersection) next = next->complement();
      result = result->complement().united(*next).complement();
    }
  }
  return result;
}

RealSet RealSet::united(const RealSet& other) const {
  std::vector<Range> all = ranges_;
  all.insert(all.end(), other.ranges_.begin(), other.ranges_.end());
  return RealSet(std::move(all));
}

RealSet RealSet::complement() const {
  std::vector<Range> gaps;
  long double low = -kInfinity;
  bool low_open = true;
  for (const Range& range : ranges_) {
    gaps.push_back({low, range.low, low_open, !range.low_open});
    low = range.high;
    low_open = !range.high_open;
  }
  gaps.push_back({low, kInfinity, low_open, true});
  return RealSet(std::move(gaps));
}

bool RealSet::contains(long double x) const {
  return std::any_of(ranges_.begin(), ranges_.end(), [x](const Range& range) {
    if (is_close(x, range.low)) return !range.low_open;
    if (is_close(x, range.high)) return !range.high_open;
    return range.low < x && x < range.high;
  });
}

bool RealSet::operator==(const RealSet& other) const {
  return std::equal(ranges_.begin(), ranges_.end(), other.ranges_.begin(), other.ranges_.end(),
                    [](const Range& a, const Range& b) {
                      return is_close(a.low, b.low) && is_close(a.high, b.high) &&
                             a.low_open == b.low_open && a.high_open == b.high_open;
                    });
}

}  // namespace nibble::math
