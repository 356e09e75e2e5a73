#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct EncodeOptions {
  bool add_special = false;  ///< apply the post-processor, e.g. <|begin_of_text|> before the text
};

struct DecodeOptions {
  bool skip_special = false;  ///< leave out the added tokens marked special
};

/// Byte-level BPE as Hugging Face `tokenizers` does it (Qwen 2 to 3, Llama 3, SmolLM2): the same
/// ids and texts for the same tokenizer.json. What a tokenizer.json may hold that is not
/// implemented is refused at loading. `clean_up_tokenization_spaces` of tokenizer_config.json is
/// not applied, as decoding must return the text that was encoded.
///
/// Immutable; any thread may call any const method. Loading throws Error{kNotFound} for a missing
/// tokenizer.json, Error{kInvalidArgument} for a malformed file (each at most 64 MiB),
/// Error{kUnimplemented} naming the part that is not supported.
class Tokenizer {
 public:
  /// Reads tokenizer.json and, where they exist, tokenizer_config.json, chat_template.jinja,
  /// config.json and generation_config.json.
  static Tokenizer from_directory(const std::filesystem::path& directory);
  /// Only the tokenizer: no stop ids, special token names or chat templates.
  static Tokenizer from_file(const std::filesystem::path& tokenizer_json);
  /// `text` is the content of a tokenizer.json; `what` names it in messages.
  static Tokenizer from_json(std::string_view text, std::string_view what);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Token ids of `text`. Added tokens in the text become their ids. Throws
  /// Error{kInvalidArgument} with the byte offset if the text is not UTF-8.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  /// Text of `ids`, U+FFFD for every maximal ill-formed part. An id without a token (models have
  /// spare embedding rows) contributes nothing; a negative one throws Error{kInvalidArgument}.
  std::string decode(std::span<const int32_t> ids, DecodeOptions options = {}) const;

  /// The highest id plus one: what an embedding needs at least.
  int32_t vocab_size() const;

  /// The id of a token written as in tokenizer.json (byte alphabet, or an added token), or -1.
  int32_t token_to_id(std::string_view token) const;

  /// The bytes a token decodes to, empty for an id without a token; they need not be UTF-8. Valid
  /// as long as the tokenizer. Throws Error{kInvalidArgument} for a negative id.
  std::string_view id_to_token_bytes(int32_t id) const;

  /// Whether decode(skip_special) leaves this id out.
  bool is_special(int32_t id) const;

  /// Ends of a generation, ascending: the union of eos_token_id in config.json and in
  /// generation_config.json and of eos_token in tokenizer_config.json.
  const std::vector<int32_t>& stop_ids() const;

  /// What ends a text: eos_token of tokenizer_config.json, without one the only stop id; -1 if
  /// nothing says it.
  int32_t end_id() const;

  /// bos_token, eos_token, pad_token, ... of tokenizer_config.json -> content, for chat templates.
  const std::map<std::string, std::string>& special_tokens() const;

  /// Chat templates by name; the usual one is "default". chat_template.jinja goes before
  /// tokenizer_config.json.
  const std::map<std::string, std::string>& chat_templates() const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const;
  std::unique_ptr<Parts> parts_;
};

}  // namespace nibble
