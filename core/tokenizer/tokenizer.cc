#include "core/tokenizer/tokenizer.h"

#include <algorithm>
#include <unordered_map>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/tokenizer/added_tokens.h"
#include "core/tokenizer/bpe.h"
#include "core/tokenizer/byte_alphabet.h"
#include "core/tokenizer/model_directory.h"
#include "core/tokenizer/nfc.h"
#include "core/tokenizer/pre_tokenizer.h"
#include "core/tokenizer/tokenizer_json.h"
#include "core/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr int64_t kMaxFileBytes = 64 << 20;

/// What every id decodes to: all bytes in one string, so that a look-up is two loads.
class TokenBytes {
 public:
  explicit TokenBytes(const std::vector<std::pair<int32_t, std::string_view>>& tokens) {
    int32_t size = 0;
    for (const auto& [id, bytes] : tokens) size = std::max(size, id + 1);
    std::vector<std::string_view> by_id(size);
    for (const auto& [id, bytes] : tokens) by_id[id] = bytes;
    offsets_.push_back(0);
    for (const std::string_view bytes : by_id) {
      bytes_ += bytes;
      offsets_.push_back(bytes_.size());
    }
  }
  int32_t size() const { return static_cast<int32_t>(offsets_.size()) - 1; }
  std::string_view at(int32_t id) const {
    if (id >= size()) return {};
    return std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }

 private:
  std::string bytes_;
  std::vector<size_t> offsets_;
};

AddedTokenMatcher matcher_of(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> chosen;
  for (const AddedToken& token : spec.added_tokens) {
    if (token.normalized == normalized) chosen.push_back(token);
  }
  return AddedTokenMatcher(std::move(chosen));
}

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(TokenizerSpec spec)
      : raw_tokens(matcher_of(spec, false)),
        normalized_tokens(matcher_of(spec, true)),
        nfc(spec.nfc),
        pre_tokenizer(std::move(spec.pre_tokenizer)),
        bytes(token_bytes(spec)),
        special(special_flags(spec, bytes.size())),
        ids_by_name(unspelled_ids(spec)),
        prefix_ids(std::move(spec.prefix_ids)),
        suffix_ids(std::move(spec.suffix_ids)),
        bpe(std::move(spec.model)) {}

  static TokenBytes token_bytes(TokenizerSpec& spec) {
    std::vector<std::pair<int32_t, std::string_view>> tokens;
    std::vector<std::string> spelled;  // `tokens` points into it: no reallocation
    spelled.reserve(spec.added_tokens.size());
    for (const auto& [bytes, id] : spec.model.tokens) tokens.emplace_back(id, bytes);
    for (const auto& [token, id] : spec.unspelled_tokens) tokens.emplace_back(id, token);
    // The decoder reads added tokens in the byte alphabet too, where they can be.
    for (const AddedToken& token : spec.added_tokens) {
      spelled.push_back(bytes_of_alphabet(token.content).value_or(token.content));
      tokens.emplace_back(token.id, spelled.back());
    }
    return TokenBytes(tokens);
  }

  static std::vector<bool> special_flags(const TokenizerSpec& spec, int32_t size) {
    std::vector<bool> flags(size);
    for (const AddedToken& token : spec.added_tokens) flags[token.id] = token.special;
    return flags;
  }

  static std::unordered_map<std::string, int32_t> unspelled_ids(const TokenizerSpec& spec) {
    std::unordered_map<std::string, int32_t> ids;
    for (const auto& [token, id] : spec.unspelled_tokens) ids[token] = id;
    for (const AddedToken& token : spec.added_tokens) ids[token.content] = token.id;
    return ids;
  }

  AddedTokenMatcher raw_tokens;         // cut out of the text as it is
  AddedTokenMatcher normalized_tokens;  // cut out after normalization
  bool nfc;
  PreTokenizer pre_tokenizer;
  TokenBytes bytes;
  std::vector<bool> special;                             // by id
  std::unordered_map<std::string, int32_t> ids_by_name;  // what the byte alphabet does not tell
  std::vector<int32_t> prefix_ids;
  std::vector<int32_t> suffix_ids;
  Bpe bpe;
  TokenizerConfig config;
  std::vector<int32_t> stop_ids;
};

namespace {

/// Checks one half of the vocabulary against the added tokens: one of these may be a token of the
/// model, under the same id and text, or new in both.
void check_added_tokens(const std::unordered_map<std::string, int32_t>& id_of_added,
                        const std::unordered_map<int32_t, std::string>& added_of_id,
                        const std::vector<std::pair<std::string, int32_t>>& vocab) {
  for (const auto& [token, id] : vocab) {
    const auto same_text = id_of_added.find(token);
    const auto same_id = added_of_id.find(id);
    if ((same_text != id_of_added.end() && same_text->second != id) ||
        (same_id != added_of_id.end() && same_id->second != token)) {
      fail(ErrorCode::kInvalidArgument, "added_tokens and model.vocab disagree about id {}", id);
    }
  }
}

void check_added_tokens(const TokenizerSpec& spec) {
  std::unordered_map<std::string, int32_t> spelled;    // bytes of the alphabet
  std::unordered_map<std::string, int32_t> unspelled;  // as written
  std::unordered_map<int32_t, std::string> by_id;
  for (const AddedToken& token : spec.added_tokens) {
    const auto bytes = bytes_of_alphabet(token.content);
    (bytes ? spelled : unspelled)[bytes.value_or(token.content)] = token.id;
    by_id[token.id] = bytes.value_or(token.content);
  }
  check_added_tokens(spelled, by_id, spec.model.tokens);
  check_added_tokens(unspelled, by_id, spec.unspelled_tokens);
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::from_json(std::string_view text, std::string_view what) {
  try {
    TokenizerSpec spec = parse_tokenizer_json(text);
    for (AddedToken& token : spec.added_tokens) {
      // `tokenizers` looks for, and also decodes to, the normalized content.
      if (token.normalized && spec.nfc) token.content = to_nfc(token.content);
    }
    check_added_tokens(spec);
    return Tokenizer(std::make_unique<Parts>(std::move(spec)));
  } catch (const Error& error) {
    fail(error.code(), "{}: {}", what, error.what());  // the same error, with the file's name
  }
}

Tokenizer Tokenizer::from_file(const std::filesystem::path& tokenizer_json) {
  return from_json(read_file(tokenizer_json, kMaxFileBytes), tokenizer_json.string());
}

Tokenizer Tokenizer::from_directory(const std::filesystem::path& directory) {
  Tokenizer tokenizer = from_file(directory / "tokenizer.json");
  Parts& parts = *tokenizer.parts_;
  parts.config = read_tokenizer_config(directory);
  for (const auto& [id, content] : parts.config.added_tokens) {
    if (tokenizer.token_to_id(content) != id) {
      fail(
          ErrorCode::kInvalidArgument,
          "{}: added_tokens_decoder has '{}' as id {}, tokenizer.json does not; save the tokenizer "
          "again with Transformers",
          (directory / "tokenizer_config.json").string(), content, id);
    }
  }
  parts.stop_ids = parts.config.eos_ids;
  const auto eos = parts.config.special_tokens.find("eos_token");
  if (eos != parts.config.special_tokens.end()) {
    const int32_t id = tokenizer.token_to_id(eos->second);
    if (id < 0) {
      fail(ErrorCode::kInvalidArgument, "{}: eos_token '{}' is not a token of tokenizer.json",
           (directory / "tokenizer_config.json").string(), eos->second);
    }
    parts.stop_ids.push_back(id);
  }
  std::sort(parts.stop_ids.begin(), parts.stop_ids.end());
  parts.stop_ids.erase(std::unique(parts.stop_ids.begin(), parts.stop_ids.end()),
                       parts.stop_ids.end());
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    fail(ErrorCode::kInvalidArgument, "the text to encode is not UTF-8 at byte {}", bad);
  }
  std::vector<int32_t> ids;
  if (options.add_special) ids = parts_->prefix_ids;
  std::vector<TextSpan> spans;
  parts_->raw_tokens.split(text, spans);
  std::vector<TextSpan> inner;
  for (const TextSpan& span : spans) {
    if (span.token >= 0) {
      ids.push_back(span.token);
      continue;
    }
    const std::string normal = parts_->nfc ? to_nfc(span.text) : std::string();
    inner.clear();
    parts_->normalized_tokens.split(parts_->nfc ? normal : span.text, inner);
    for (const TextSpan& part : inner) {
      if (part.token >= 0) {
        ids.push_back(part.token);
      } else {
        encode_plain(part.text, ids);
      }
    }
  }
  if (options.add_special) {
    ids.insert(ids.end(), parts_->suffix_ids.begin(), parts_->suffix_ids.end());
  }
  return ids;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
  PreTokenizer::Pieces pieces;
  parts_->pre_tokenizer.split(text, pieces);
  for (const std::string_view piece : pieces.views) parts_->bpe.encode(piece, ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeOptions options) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!options.skip_special || !is_special(id)) bytes += id_to_token_bytes(id);
  }
  std::string text;
  text.reserve(bytes.size());
  if (append_lossy_utf8(text, bytes) < bytes.size()) append_utf8(text, 0xFFFD);
  return text;
}

int32_t Tokenizer::vocab_size() const { return parts_->bytes.size(); }

int32_t Tokenizer::token_to_id(std::string_view token) const {
  const auto named = parts_->ids_by_name.find(std::string(token));
  if (named != parts_->ids_by_name.end()) return named->second;
  const auto bytes = bytes_of_alphabet(token);
  return bytes ? parts_->bpe.find(*bytes) : -1;
}

std::string_view Tokenizer::id_to_token_bytes(int32_t id) const {
  if (id < 0) fail(ErrorCode::kInvalidArgument, "token id {} is negative", id);
  return parts_->bytes.at(id);
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[id];
}

const std::vector<int32_t>& Tokenizer::stop_ids() const { return parts_->stop_ids; }

int32_t Tokenizer::end_id() const {
  const auto named = special_tokens().find("eos_token");
  if (named != special_tokens().end()) return token_to_id(named->second);
  return stop_ids().size() == 1 ? stop_ids()[0] : -1;
}

const std::map<std::string, std::string>& Tokenizer::special_tokens() const {
  return parts_->config.special_tokens;
}

const std::map<std::string, std::string>& Tokenizer::chat_templates() const {
  return parts_->config.chat_templates;
}

}  // namespace nibble
