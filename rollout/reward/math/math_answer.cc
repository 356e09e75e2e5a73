#include "rollout/reward/math/math_answer.h"

#include <string>

#include "core/base/fail.h"
#include "rollout/reward/math/answer_extraction.h"
#include "rollout/reward/math/equality.h"
#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/text/text.h"

namespace nibble::math {

bool is_right_answer(std::string_view response, std::string_view label) {
  if (trim(label).empty()) fail(ErrorCode::kInvalidArgument, "the label is empty");
  if (label.size() > kMaxLatexBytes) {
    fail(ErrorCode::kInvalidArgument, "the label has {} bytes; at most {} are compared",
         label.size(), kMaxLatexBytes);
  }
  const ExtractedAnswer right = extract_answer("\\boxed{" + std::string(label) + "}");
  const ExtractedAnswer given = extract_answer(response);
  if (!right.text.empty() && right.text == given.text) return true;
  return right.expression && given.expression &&
         are_equal_answers(right.expression, given.expression);
}

}  // namespace nibble::math
