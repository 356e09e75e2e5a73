#include "core/tokenizer/stream_decoder.h"

#include "core/tokenizer/utf8.h"

namespace nibble {

std::string StreamDecoder::push(int32_t id) {
  if (options_.skip_special && tokenizer_.is_special(id)) return {};
  pending_ += tokenizer_.id_to_token_bytes(id);
  std::string text;
  pending_.erase(0, append_lossy_utf8(text, pending_));
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  if (!pending_.empty()) append_utf8(text, 0xFFFD);
  pending_.clear();
  return text;
}

}  // namespace nibble
