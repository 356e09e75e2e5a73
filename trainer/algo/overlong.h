#pragma once

#include <cstdint>

namespace nibble {

/// DAPO's soft punishment of long responses, to be added to the reward: 0 up to
/// max_length - cache_length tokens, then falling linearly to -1 at max_length and -1 beyond.
/// Throws Error{kInvalidArgument} unless 0 < cache_length <= max_length and length >= 0.
double overlong_penalty(int64_t length, int64_t max_length, int64_t cache_length);

}  // namespace nibble
