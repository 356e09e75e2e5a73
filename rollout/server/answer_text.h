#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tokenizer/stream_decoder.h"
#include "rollout/engine/stop_condition.h"
#include "rollout/engine/stop_strings.h"

namespace nibble {

/// The text of one answer as its tokens arrive: whole UTF-8 characters, up to where a stop string
/// begins. What may yet become a stop string is held back. One thread; borrows the tokenizer.
class AnswerText {
 public:
  /// Throws Error{kInvalidArgument} as StopStrings does.
  AnswerText(const Tokenizer& tokenizer, const std::vector<std::string>& stop,
             DecodeOptions options);

  /// The text that is certain with this token; often empty.
  std::string push(int32_t token);
  /// What was held back, at the end of an answer that no stop string ended.
  std::string finish();
  /// Characters (code points) that the tokens so far stand for, held back ones included.
  int64_t num_characters() const { return num_characters_; }

 private:
  StreamDecoder decoder_;
  StopStrings stop_;
  std::string held_;
  int64_t num_bytes_ = 0;  // given away, and held_
  int64_t num_characters_ = 0;
  bool is_cut_ = false;  // at a stop string: nothing comes after it
};

/// The same search on the engine's side: it ends a sample where AnswerText cuts it.
class AnswerStop final : public StopCondition {
 public:
  AnswerStop(const Tokenizer& tokenizer, const std::vector<std::string>& stop,
             DecodeOptions options);
  bool ends_at(int32_t token) override;

 private:
  StreamDecoder decoder_;
  StopStrings stop_;
};

/// Code points of a valid UTF-8 text.
int64_t count_characters(std::string_view text);

}  // namespace nibble
