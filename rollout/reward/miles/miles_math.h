#pragma once

#include <string_view>

namespace nibble::miles {

// The rule that Miles calls rm-type math (and that "deepscaler" applies to what follows the
// thinking): two normalizations as strings, then symbolic equality of the elements. It is what
// runs with Miles were trained on, its oddities included: it takes y=5 for x=5 and refuses every
// fraction that is not reduced.

/// Whether the last \boxed{} of the response equals the label, which may be boxed itself. Throws
/// Error{kInvalidArgument} for a label that is empty or above 4 KiB.
bool is_right_boxed_answer(std::string_view response, std::string_view label);

/// The part of a response behind the last "</think>", else between the first two "###Response"; ""
/// if neither is there.
std::string_view behind_thinking(std::string_view response);

}  // namespace nibble::miles
