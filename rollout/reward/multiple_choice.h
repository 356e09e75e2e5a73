#pragma once

#include <optional>
#include <string_view>

#include "core/base/json.h"

namespace nibble {

/// The letter that a response chooses, upper case, of the first `num_choices` letters; nullopt if
/// none. Behind the last "</think>", in this order: the last \boxed{} that holds a letter alone
/// ("B", "(B)", "\text{B}"); the last letter behind "answer", "option" or "choice" with "is" or ":"
/// or nothing between; the last capital letter on its own.
std::optional<char> chosen_letter(std::string_view response, int num_choices);

/// 1 if the response chooses the right letter, else 0. The label is a letter, the number of a
/// choice from 0, or {"answer": either, "choices": n or a list}; without choices there are four, or
/// as many as the letter needs. Throws Error{kInvalidArgument} for another label.
double multiple_choice_score(std::string_view response, const Json& label);

}  // namespace nibble
