#pragma once

#include <string>
#include <string_view>

#include "rollout/reward/text/boxed.h"

namespace nibble::math {

/// LaTeX as people write it, made uniform: boxes opened, \left and \right, dollar signs, quotes and
/// display commands dropped; "and", "or" as commas; percent, infinity and dots by one spelling;
/// units and text behind the number dropped (unit_words.h); short forms of fractions, roots and
/// powers in braces (latex_repairs.h). Linear but for a few passes; text above kMaxLatexBytes once
/// its boxes are opened is returned as it is.
std::string normalize_latex(std::string_view latex, BoxChoice boxes);

}  // namespace nibble::math
