#include "rollout/reward/text/label_text.h"

#include <algorithm>
#include <limits>

#include "core/base/fail.h"
#include "rollout/reward/text/text.h"

namespace nibble {

std::string label_text(const Json& label) {
  if (label.is_string()) return label.get<std::string>();
  if (label.is_number()) {
    std::string text = label.dump();
    // A JSON number with more digits than a double holds has lost some by now.
    constexpr auto kDigits = std::numeric_limits<double>::digits10;
    const std::string mantissa = text.substr(0, text.find_first_of("eE"));
    if (label.is_number_float() &&
        std::count_if(mantissa.begin(), mantissa.end(), is_ascii_digit) > kDigits + 1) {
      fail(ErrorCode::kInvalidArgument,
           "the label {} has more digits than a JSON number keeps; write it as a string", text);
    }
    return text;
  }
  fail(ErrorCode::kInvalidArgument, "the label is of type {}; want a string or a number",
       label.type_name());
}

}  // namespace nibble
