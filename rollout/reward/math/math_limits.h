#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::math {

// What bounds the work on one answer, whatever a model wrote. A response beyond a limit is not
// understood, which is "not equal"; a label beyond one is the caller's mistake.

constexpr size_t kMaxSearchedBytes = 64 << 10;  ///< end of a response that is searched for answers
constexpr int kMaxCandidates = 64;              ///< places of one kind that are tried
constexpr size_t kMaxLatexBytes = 4 << 10;      ///< one answer
constexpr size_t kMaxArithmeticBytes = 128;     ///< arithmetic in a text without LaTeX
constexpr int kMaxDepth = 200;           ///< rules within rules: about 60 parentheses in each other
constexpr int kMaxParseSteps = 20'000;   ///< tokens looked at, those read again included
constexpr size_t kMaxDigits = 1'200;     ///< of a number as it is written
constexpr size_t kMaxExactBits = 4'096;  ///< numerator or denominator of an exact value
constexpr int64_t kMaxTerms = 1'000;     ///< of a sum or product that is written out
constexpr int64_t kMaxEvaluationSteps = 20'000;  ///< of one expression at one point
constexpr int kMaxElements = 128;                ///< of a list, a set or a matrix

}  // namespace nibble::math
