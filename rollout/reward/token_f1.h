#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// Words as SQuAD compares them: lower case (ASCII), without punctuation and the articles a, an,
/// the.
std::vector<std::string> squad_words(std::string_view text);

/// Harmonic mean of precision and recall over the words of response and label, each counted as
/// often as it occurs; 1 where neither has any. The label is a text or a list of texts, of which
/// the best counts. Throws Error{kInvalidArgument} for another label and for an empty list.
double token_f1(std::string_view response, const Json& label);

}  // namespace nibble
