#include "coordinator/held_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace nibble {
namespace {

constexpr size_t kMaxName = 40;

// A metric's name is a column, an axis and a word of SQL.
bool is_metric_part(const std::string& name) {
  return !name.empty() && name.size() <= kMaxName &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '_';
         });
}

}  // namespace

std::vector<HeldOutSet> held_out_sets(const EvalSection& eval, int64_t max_new_tokens) {
  std::vector<HeldOutSet> sets;
  if (!eval.data.empty()) {
    sets.push_back({"", eval.data, eval.samples, eval.temperature, 1.0, 0, max_new_tokens});
  }
  for (const EvalSetSection& set : eval.sets) {
    sets.push_back({set.name, set.data, set.samples.value_or(eval.samples),
                    set.temperature.value_or(eval.temperature), set.top_p, set.top_k,
                    set.max_new_tokens.value_or(max_new_tokens)});
  }
  return sets;
}

std::string held_out_problem(const EvalSection& eval) {
  if (!eval.data.empty() && !eval.sets.empty()) {
    return "eval.data: it is one set, and eval.sets names others; make it one of eval.sets";
  }
  std::set<std::string> names;
  for (size_t i = 0; i < eval.sets.size(); ++i) {
    const EvalSetSection& set = eval.sets[i];
    if (!is_metric_part(set.name)) {
      return fmt::format(
          "eval.sets.{}.name: '{}' becomes a part of metrics' names; it must be 1 to {} letters, "
          "digits or underscores",
          i, set.name, kMaxName);
    }
    if (set.data.empty()) return fmt::format("eval.sets.{}.data: it is not set", i);
    if (!names.insert(set.name).second) {
      return fmt::format("eval.sets.{}.name: '{}' is another set's name too", i, set.name);
    }
  }
  return {};
}

}  // namespace nibble
