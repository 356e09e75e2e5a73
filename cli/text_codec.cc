#include "cli/text_codec.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/tokenizer/model_directory.h"

namespace nibble {

TextCodec::TextCodec(const std::filesystem::path& model,
                     const std::filesystem::path& tokenizer_directory)
    : directory_(tokenizer_directory.empty() ? model : tokenizer_directory),
      stop_ids_(read_tokenizer_config(model).eos_ids) {
  if (!tokenizer_directory.empty() || std::filesystem::exists(directory_ / "tokenizer.json")) {
    tokenizer_.emplace(Tokenizer::from_directory(directory_));
    encoder_.emplace(*tokenizer_, directory_.string());
    stop_ids_.insert(stop_ids_.end(), tokenizer_->stop_ids().begin(), tokenizer_->stop_ids().end());
  }
  std::sort(stop_ids_.begin(), stop_ids_.end());
  stop_ids_.erase(std::unique(stop_ids_.begin(), stop_ids_.end()), stop_ids_.end());
}

const Tokenizer& TextCodec::tokenizer() const {
  if (!tokenizer_) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' has no tokenizer.json; name a directory that has it with --tokenizer, or give "
         "input_ids",
         directory_.string());
  }
  return *tokenizer_;
}

const PromptEncoder& TextCodec::encoder() const {
  (void)tokenizer();
  return *encoder_;
}

std::optional<std::string> TextCodec::response_text(std::span<const int32_t> tokens) const {
  if (!tokenizer_) return std::nullopt;
  return tokenizer_->decode(tokens, {.skip_special = true});
}

}  // namespace nibble
