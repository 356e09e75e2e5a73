#pragma once

#include <string_view>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// 1 if a response follows every instruction of its label, else 0, by rules on the text alone. The
/// label is {"instruction_id_list": [id, ..], "kwargs": [{..}, ..]}, as in IFEval and IFBench; null
/// arguments count as absent, and what is not given has no default. An empty response follows
/// nothing. Throws Error{kInvalidArgument} for a label of another form and arguments that are
/// missing or wrong, Error{kUnimplemented} naming an id that is none of instruction_ids().
double instruction_score(std::string_view response, const Json& label);

/// The ids that are checked, sorted.
std::vector<std::string_view> instruction_ids();

}  // namespace nibble
