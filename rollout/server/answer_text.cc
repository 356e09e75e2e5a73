#include "rollout/server/answer_text.h"

#include <algorithm>
#include <utility>

namespace nibble {

AnswerText::AnswerText(const Tokenizer& tokenizer, const std::vector<std::string>& stop,
                       DecodeOptions options)
    : decoder_(tokenizer, options), stop_(stop) {}

std::string AnswerText::push(int32_t token) {
  const std::string piece = decoder_.push(token);
  num_characters_ += count_characters(piece);
  if (is_cut_) return {};
  held_ += piece;
  num_bytes_ += std::ssize(piece);
  const auto match = stop_.push(piece);
  is_cut_ = match.has_value();
  // Both ends are those of characters: the text comes in whole ones, and stop strings are UTF-8.
  const int64_t keep = match ? num_bytes_ - match->begin_byte : stop_.pending_bytes();
  const auto given = static_cast<size_t>(std::max<int64_t>(0, std::ssize(held_) - keep));
  std::string text = held_.substr(0, given);
  held_.erase(0, given);
  return text;
}

std::string AnswerText::finish() {
  const std::string rest = decoder_.finish();
  num_characters_ += count_characters(rest);
  if (is_cut_) return {};
  return std::exchange(held_, {}) + rest;
}

AnswerStop::AnswerStop(const Tokenizer& tokenizer, const std::vector<std::string>& stop,
                       DecodeOptions options)
    : decoder_(tokenizer, options), stop_(stop) {}

bool AnswerStop::ends_at(int32_t token) { return stop_.push(decoder_.push(token)).has_value(); }

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;  // not a continuation
  });
}

}  // namespace nibble
