#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

/// What the files beside tokenizer.json say about it.
struct TokenizerConfig {
  std::vector<int32_t> eos_ids;                       ///< of config.json and generation_config.json
  std::map<std::string, std::string> special_tokens;  ///< "eos_token" -> "<|im_end|>", ...
  std::map<std::string, std::string> chat_templates;  ///< name -> source
  std::vector<std::pair<int32_t, std::string>> added_tokens;  ///< added_tokens_decoder
};

/// Reads tokenizer_config.json, chat_template.jinja, config.json and generation_config.json; each
/// may be missing. Throws Error{kInvalidArgument} naming file and key of a value of a wrong type.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);

}  // namespace nibble
