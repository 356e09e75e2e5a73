#pragma once

#include <string>
#include <string_view>

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// What a text gives as its answer.
struct ExtractedAnswer {
  Expression expression;  ///< null: nothing was understood
  std::string text;       ///< of the first place that was looked at; "": there is none
};

/// Looks for the answer in this order, in each at the last place first, until one is understood:
///   1. "the final answer is X. I hope"
///   2. boxes, and "final answer .. is X"
///   3. "answer: X"        4. "answer .. X"        5. any LaTeX, arithmetic or number
/// Only the last kMaxSearchedBytes of the text are searched.
ExtractedAnswer extract_answer(std::string_view text);

}  // namespace nibble::math
