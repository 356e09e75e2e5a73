#pragma once

#include <string_view>

#include "core/base/json.h"

namespace nibble {

/// Score of an answer to a reasoning-gym item, by the rules of reasoning-gym 0.1.25.
///   item    object with task (chain_sum, basic_arithmetic, countdown, gcd, lcm, products,
///           simple_equations, number_sorting, letter_counting, base_conversion, spell_backward,
///           leg_counting, prime_factorization, fraction_simplification), answer and metadata
///   answer  what the library's score_answer would be given
/// Departs from the library where it would pay for a trick: number_sorting takes finite numbers
/// only (the library accepts a list of "nan"), countdown takes no exponents and no factorials
/// ("5e0" is a number its count does not see). White space is ASCII. Throws Error{kInvalidArgument}
/// for a malformed item, and where the library's own rule raises: a prime_factorization answer
/// whose parts between "×" are not integers.
double gym_score(const Json& item, std::string_view answer);

/// What stands in the last <answer>..</answer> of a response, trimmed; the whole response where
/// there is none (the library's extract_answer).
std::string_view extract_gym_answer(std::string_view response);

}  // namespace nibble
