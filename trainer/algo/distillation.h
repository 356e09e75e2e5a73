#pragma once

#include <span>

namespace nibble {

/// On-policy distillation (`opd`): tokens that the student sampled, scored by a teacher. The
/// advantage is the one-token estimate of -KL(student || teacher),
///   A_t = teacher_logp_t - logp_t,
/// with no gradient through it (Agarwal et al., 2024, arXiv:2306.13649, for sampling from the
/// student and the reverse KL; Lu, Thinking Machines, 2025, for it as a token's advantage).
///   logp, teacher_logp  [tokens] of the same tokens
///   advantages          [tokens], overwritten
/// Throws Error{kInvalidArgument} for spans of different sizes.
void distillation_advantages(std::span<const double> logp, std::span<const double> teacher_logp,
                             std::span<double> advantages);

}  // namespace nibble
