#pragma once

#include <optional>
#include <string_view>

#include "rollout/reward/decimal.h"

namespace nibble {

/// The last number written in a text, exactly; nullopt if there is none. Linear in the text.
///   1,234,567.50   behind one to three digits, a comma with exactly three digits after it joins;
///                  any other comma separates ("1,2" ends in 2, "1,234,5678" in 5678)
///   -5  +5  (also U+2212)   a sign counts unless a digit, letter or closing bracket stands right
///                  before it ("7-5" ends in 5)
///   .5  42.        a fraction needs no whole part; a point without digits behind it is no part
///   2.5e-3         exponents count where digits follow
/// "3/4" ends in 4 and "50%" in 50: fractions and units are not read.
std::optional<Decimal> find_last_number(std::string_view text);

}  // namespace nibble
