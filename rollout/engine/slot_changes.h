#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rollout/engine/step_plan.h"

namespace nibble {

/// What a copy of a slot table elsewhere still lacks. One thread.
class SlotChanges {
 public:
  ///   entries  of the table: max_running * max_positions
  explicit SlotChanges(int64_t entries) : known_(static_cast<size_t>(entries), -1) {}

  /// Calls `change(index, slot)` for each entry that the plan's tokens read and that has another
  /// value than the last time.
  template <typename Change>
  void visit(const StepPlan& plan, const int32_t* slot_table, Change change) {
    for (size_t t = 0; t < plan.first.size(); ++t) {
      // Tokens of a chunk share their lane: the last one sees all that the others see.
      if (t + 1 < plan.first.size() && plan.first[t + 1] == plan.first[t]) continue;
      const int64_t first = plan.first[t];
      for (int64_t i = first; i < first + plan.count[t]; ++i) {
        int32_t& known = known_[static_cast<size_t>(i)];
        if (known == slot_table[i]) continue;
        known = slot_table[i];
        change(i, slot_table[i]);
      }
    }
  }

 private:
  std::vector<int32_t> known_;
};

}  // namespace nibble
