#include "rollout/text_stop.h"

namespace nibble {

TextStop::TextStop(const Tokenizer& tokenizer, const std::vector<std::string>& strings)
    : decoder_(tokenizer), strings_(strings) {}

bool TextStop::ends_at(int32_t token) { return strings_.push(decoder_.push(token)).has_value(); }

}  // namespace nibble
