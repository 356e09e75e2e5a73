#include "trainer/algo/distillation.h"

#include <cstddef>

#include "core/base/fail.h"

namespace nibble {

void distillation_advantages(std::span<const double> logp, std::span<const double> teacher_logp,
                             std::span<double> advantages) {
  if (teacher_logp.size() != logp.size() || advantages.size() != logp.size()) {
    fail(ErrorCode::kInvalidArgument,
         "distillation: {} log-probabilities, {} of the teacher and room for {} advantages",
         logp.size(), teacher_logp.size(), advantages.size());
  }
  for (size_t i = 0; i < logp.size(); ++i) advantages[i] = teacher_logp[i] - logp[i];
}

}  // namespace nibble
