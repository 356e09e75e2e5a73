#include "core/tokenizer/tokenizer_json.h"

#include <set>

#include "core/base/fail.h"
#include "core/tokenizer/byte_alphabet.h"
#include "core/tokenizer/json_fields.h"

namespace nibble {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 21;
constexpr size_t kMaxMerges = size_t{1} << 22;
constexpr size_t kMaxAddedTokens = size_t{1} << 16;
constexpr size_t kMaxTokenBytes = 4096;
constexpr size_t kMaxAddedTokenBytes = 512;
constexpr int64_t kMaxId = int64_t{1} << 22;
constexpr int kMaxSequenceDepth = 8;

[[noreturn]] void refuse_type(std::string_view what, std::string_view type) {
  fail(ErrorCode::kUnimplemented, "{} of type '{}' is not supported", what, type);
}

int32_t checked_id(const Json& value, std::string_view what) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= kMaxId) {
    fail(ErrorCode::kInvalidArgument, "{}: a token id must be an integer from 0 to {}", what,
         kMaxId - 1);
  }
  return value.get<int32_t>();
}

const Json& checked_array(const Json& value, std::string_view what, size_t max_size) {
  if (!value.is_array() || value.size() > max_size) {
    fail(ErrorCode::kInvalidArgument, "{} must be an array of at most {} entries", what, max_size);
  }
  return value;
}

// --- added tokens ---

AddedToken parse_added_token(const Json& entry, const std::string& what) {
  const JsonFields fields(
      entry, what, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  AddedToken token;
  token.id = checked_id(fields.get("id"), fields.path("id"));
  token.content = fields.text("content");
  token.single_word = fields.boolean("single_word", false);
  token.lstrip = fields.boolean("lstrip", false);
  token.rstrip = fields.boolean("rstrip", false);
  token.special = fields.boolean("special", false);
  token.normalized = fields.boolean("normalized", !token.special);
  if (token.content.empty() || token.content.size() > kMaxAddedTokenBytes) {
    fail(ErrorCode::kInvalidArgument, "{} must have 1 to {} bytes", fields.path("content"),
         kMaxAddedTokenBytes);
  }
  return token;
}

std::vector<AddedToken> parse_added_tokens(const Json& list) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  std::set<int32_t> ids;
  std::set<std::string> contents;
  for (const Json& entry : checked_array(list, "added_tokens", kMaxAddedTokens)) {
    const std::string what = fmt::format("added_tokens[{}]", tokens.size());
    tokens.push_back(parse_added_token(entry, what));
    if (!ids.insert(tokens.back().id).second || !contents.insert(tokens.back().content).second) {
      fail(ErrorCode::kInvalidArgument, "{}: id {} or content '{}' appears twice", what,
           tokens.back().id, tokens.back().content);
    }
  }
  return tokens;
}

// --- pre-tokenizer, decoder, post-processor ---

PreTokenizerStep parse_split(const Json& object, const std::string& what) {
  const JsonFields fields(object, what, {"type", "pattern", "behavior", "invert"});
  if (const std::string behavior = fields.text("behavior"); behavior != "Isolated") {
    fail(ErrorCode::kUnimplemented, "{} = '{}' is not supported", fields.path("behavior"),
         behavior);
  }
  fields.require_neutral("invert", false);
  const JsonFields pattern(fields.get("pattern"), fields.path("pattern"), {"Regex"});
  PreTokenizerStep step;
  step.pattern.emplace(pattern.text("Regex"), pattern.path("Regex"));
  return step;
}

PreTokenizerStep parse_byte_level(const Json& object, const std::string& what) {
  const JsonFields fields(object, what, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  PreTokenizerStep step;
  step.add_prefix_space = fields.boolean("add_prefix_space", true);
  if (fields.boolean("use_regex", true)) step.pattern.emplace(gpt2_pattern(), what);
  return step;
}

/// The steps of a pre-tokenizer and where among them ByteLevel stands.
struct PreTokenizerParse {
  std::vector<PreTokenizerStep> steps;
  std::vector<size_t> byte_levels;
};

void parse_pre_tokenizer(const Json& object, const std::string& what, int depth,
                         PreTokenizerParse& parse) {
  const std::string type = json_type_of(object, what);
  if (type == "Split") {
    parse.steps.push_back(parse_split(object, what));
  } else if (type == "ByteLevel") {
    parse.byte_levels.push_back(parse.steps.size());
    parse.steps.push_back(parse_byte_level(object, what));
  } else if (type == "Digits") {
    const JsonFields fields(object, what, {"type", "individual_digits"});
    using Digits = PreTokenizerStep::Digits;
    parse.steps.emplace_back().digits =
        fields.boolean("individual_digits", false) ? Digits::kIndividual : Digits::kContiguous;
  } else if (type == "Sequence" && depth < kMaxSequenceDepth) {
    const JsonFields fields(object, what, {"type", "pretokenizers"});
    int index = 0;
    for (const Json& inner : checked_array(fields.get("pretokenizers"), what, 16)) {
      parse_pre_tokenizer(inner, fmt::format("{}.pretokenizers[{}]", what, index++), depth + 1,
                          parse);
    }
  } else {
    refuse_type(what, type);
  }
}

std::vector<PreTokenizerStep> parse_pre_tokenizer(const Json& object) {
  PreTokenizerParse parse;
  parse_pre_tokenizer(object, "pre_tokenizer", 0, parse);
  // After ByteLevel a step would see the byte alphabet; without one, BPE would see characters.
  if (parse.byte_levels.size() != 1 || parse.byte_levels[0] + 1 != parse.steps.size()) {
    fail(ErrorCode::kUnimplemented,
         "pre_tokenizer: only one ByteLevel as the last step is supported");
  }
  return std::move(parse.steps);
}

void parse_decoder(const Json& object) {
  const std::string type = json_type_of(object, "decoder");
  if (type != "ByteLevel") refuse_type("decoder", type);
  JsonFields(object, "decoder", {"type", "add_prefix_space", "trim_offsets", "use_regex"});
}

void parse_template(const Json& object, const std::string& what, TokenizerSpec& spec) {
  const JsonFields fields(object, what, {"type", "single", "pair", "special_tokens"});
  const Json& specials = fields.get("special_tokens");
  std::vector<int32_t> before;
  std::vector<int32_t> after;
  bool seen_text = false;
  for (const Json& item : checked_array(fields.get("single"), fields.path("single"), 64)) {
    const JsonFields piece(item, fields.path("single"), {"SpecialToken", "Sequence"});
    if (!piece.get("Sequence").is_null()) {
      if (seen_text) fail(ErrorCode::kUnimplemented, "{} repeats the text", fields.path("single"));
      seen_text = true;
      continue;
    }
    const JsonFields token(piece.get("SpecialToken"), piece.path("SpecialToken"),
                           {"id", "type_id"});
    const std::string name = token.text("id");
    const auto found = specials.is_object() ? specials.find(name) : specials.end();
    if (!specials.is_object() || found == specials.end()) {
      fail(ErrorCode::kInvalidArgument, "{}: '{}' is missing from special_tokens", what, name);
    }
    const JsonFields special(*found, fields.path("special_tokens"), {"id", "ids", "tokens"});
    for (const Json& id : checked_array(special.get("ids"), special.path("ids"), 64)) {
      (seen_text ? after : before).push_back(checked_id(id, special.path("ids")));
    }
  }
  if (!seen_text) fail(ErrorCode::kInvalidArgument, "{} has no Sequence", fields.path("single"));
  spec.prefix_ids.insert(spec.prefix_ids.begin(), before.begin(), before.end());
  spec.suffix_ids.insert(spec.suffix_ids.end(), after.begin(), after.end());
}

void parse_post_processor(const Json& object, const std::string& what, int depth,
                          TokenizerSpec& spec) {
  const std::string type = json_type_of(object, what);
  if (type == "ByteLevel") {  // moves offsets, not ids
    JsonFields(object, what, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "TemplateProcessing") {
    parse_template(object, what, spec);
  } else if (type == "Sequence" && depth < kMaxSequenceDepth) {
    const JsonFields fields(object, what, {"type", "processors"});
    int index = 0;
    for (const Json& inner : checked_array(fields.get("processors"), what, 16)) {
      parse_post_processor(inner, fmt::format("{}.processors[{}]", what, index++), depth + 1, spec);
    }
  } else {
    refuse_type(what, type);
  }
}

// --- model ---

std::string merge_part(std::string_view token, size_t index) {
  auto bytes = bytes_of_alphabet(token);
  if (!bytes) {
    fail(ErrorCode::kInvalidArgument, "model.merges[{}]: '{}' is not in the byte-level alphabet",
         index, token);
  }
  return std::move(*bytes);
}

void parse_merges(const Json& list, BpeModel& model) {
  size_t index = 0;
  for (const Json& entry : checked_array(list, "model.merges", kMaxMerges)) {
    std::string left;
    std::string right;
    if (entry.is_string()) {
      const auto& line = entry.get_ref<const std::string&>();
      const size_t space = line.find(' ');
      if (line.rfind("#version", 0) == 0) continue;
      if (space != std::string::npos && line.find(' ', space + 1) == std::string::npos) {
        left = line.substr(0, space);
        right = line.substr(space + 1);
      }
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
               entry[1].is_string()) {
      left = entry[0].get<std::string>();
      right = entry[1].get<std::string>();
    }
    if (left.empty() || right.empty()) {
      fail(ErrorCode::kInvalidArgument, "model.merges[{}] must be \"left right\" or a pair", index);
    }
    model.merges.emplace_back(merge_part(left, index), merge_part(right, index));
    ++index;
  }
}

void parse_vocab(const Json& vocab, TokenizerSpec& spec) {
  if (!vocab.is_object() || vocab.empty() || vocab.size() > kMaxTokens) {
    fail(ErrorCode::kInvalidArgument, "model.vocab must be an object of 1 to {} tokens",
         kMaxTokens);
  }
  std::vector<bool> used(kMaxId);
  for (const auto& [token, value] : vocab.items()) {
    const int32_t id = checked_id(value, "model.vocab");
    if (used[id]) fail(ErrorCode::kInvalidArgument, "model.vocab: id {} appears twice", id);
    used[id] = true;
    if (token.size() > 2 * kMaxTokenBytes || token.empty()) {
      fail(ErrorCode::kInvalidArgument, "model.vocab: token {} must have 1 to {} bytes", id,
           kMaxTokenBytes);
    }
    if (auto bytes = bytes_of_alphabet(token)) {
      spec.model.tokens.emplace_back(std::move(*bytes), id);
    } else {
      spec.unspelled_tokens.emplace_back(token, id);
    }
  }
}

void parse_model(const Json& object, TokenizerSpec& spec) {
  if (object.is_object() && object.contains("type")) {
    const std::string type = json_type_of(object, "model");
    if (type != "BPE") refuse_type("model", type);
  }
  const JsonFields fields(
      object, "model",
      {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
       "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  fields.require_neutral("dropout", 0.0);
  fields.require_neutral("unk_token", nullptr);
  fields.require_neutral("continuing_subword_prefix", "");
  fields.require_neutral("end_of_word_suffix", "");
  fields.require_neutral("fuse_unk", false);
  fields.require_neutral("byte_fallback", false);
  spec.model.ignore_merges = fields.boolean("ignore_merges", false);
  parse_vocab(fields.get("vocab"), spec);
  parse_merges(fields.get("merges"), spec.model);
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view text) {
  const Json json = parse_json(text, "tokenizer.json");
  const JsonFields fields(json, "tokenizer.json",
                          {"version", "truncation", "padding", "added_tokens", "normalizer",
                           "pre_tokenizer", "post_processor", "decoder", "model"});
  fields.require_neutral("version", "1.0");
  fields.require_neutral("truncation", nullptr);
  fields.require_neutral("padding", nullptr);
  TokenizerSpec spec;
  if (const Json& normalizer = fields.get("normalizer"); !normalizer.is_null()) {
    const std::string type = json_type_of(normalizer, "normalizer");
    if (type != "NFC") refuse_type("normalizer", type);
    spec.nfc = true;
  }
  parse_model(fields.get("model"), spec);
  spec.added_tokens = parse_added_tokens(fields.get("added_tokens"));
  spec.pre_tokenizer = parse_pre_tokenizer(fields.get("pre_tokenizer"));
  parse_decoder(fields.get("decoder"));
  if (const Json& post = fields.get("post_processor"); !post.is_null()) {
    parse_post_processor(post, "post_processor", 0, spec);
  }
  return spec;
}

}  // namespace nibble
