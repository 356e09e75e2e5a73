#pragma once

#include <array>

#include "core/config/fields.h"

namespace nibble {

/// How generation and training follow one another.
enum class RolloutSchedule {
  kSync,        ///< a step's samples come from the newest weights; then it trains on them
  kOneStepOff,  ///< the next step's samples are drawn while this one trains
  kAsync,       ///< engines draw all the time; weights change in the middle of samples
};

constexpr std::array<EnumName<RolloutSchedule>, 3> enum_names(RolloutSchedule) {
  return {{{RolloutSchedule::kSync, "sync"},
           {RolloutSchedule::kOneStepOff, "one_step_off"},
           {RolloutSchedule::kAsync, "async"}}};
}

/// Which groups are worth training on.
enum class DynamicFilter {
  kNone,
  kNonzeroStd,  ///< those whose samples differ in reward: the others have no advantage (DAPO)
};

constexpr std::array<EnumName<DynamicFilter>, 2> enum_names(DynamicFilter) {
  return {{{DynamicFilter::kNone, "none"}, {DynamicFilter::kNonzeroStd, "nonzero_std"}}};
}

}  // namespace nibble
