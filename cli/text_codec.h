#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {

/// The tokenizer beside a model, if there is one: weights alone can be sampled from token ids.
class TextCodec {
 public:
  /// `tokenizer_directory` empty: the model's. Throws Error naming a file that is wrong, and a
  /// tokenizer directory that was asked for and has no tokenizer.json.
  TextCodec(const std::filesystem::path& model, const std::filesystem::path& tokenizer_directory);
  TextCodec(const TextCodec&) = delete;
  TextCodec& operator=(const TextCodec&) = delete;

  bool has_tokenizer() const { return tokenizer_.has_value(); }
  /// Throw Error{kInvalidArgument} saying what to do if there is no tokenizer.
  const Tokenizer& tokenizer() const;
  const PromptEncoder& encoder() const;

  /// Ends of a generation, also without a tokenizer, as config.json names them.
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  /// The text of a response, special tokens left out, as rewards see it; nullopt without tokenizer.
  std::optional<std::string> response_text(std::span<const int32_t> tokens) const;

 private:
  std::filesystem::path directory_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<PromptEncoder> encoder_;  // borrows tokenizer_
  std::vector<int32_t> stop_ids_;
};

}  // namespace nibble
