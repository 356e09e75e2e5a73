#include "core/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <thread>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/tokenizer/chat_template.h"
#include "core/tokenizer/stream_decoder.h"
#include "tests/core/tokenizer/oracle_files.h"

namespace nibble {
namespace {

using test::oracle_path;
using test::qwen_tokenizer;
using test::read_oracle_lines;
using Ids = std::vector<int32_t>;

Tokenizer small_tokenizer(const std::string& style) {
  return Tokenizer::from_directory(oracle_path("tokenizer/" + style));
}

TEST(QwenTokenizer, EncodesAndDecodesLikeTransformers) {
  for (const auto& line : read_oracle_lines("tokenizer/encode.jsonl")) {
    const auto ids = line["ids"].get<Ids>();
    EXPECT_EQ(qwen_tokenizer().encode(line["text"].get<std::string>()), ids) << line["id"];
    EXPECT_EQ(qwen_tokenizer().decode(ids), line["decoded"].get<std::string>()) << line["id"];
    EXPECT_EQ(qwen_tokenizer().decode(ids, {.skip_special = true}),
              line["decoded_skip_special"].get<std::string>())
        << line["id"];
  }
}

TEST(StreamDecoder, EmitsWholeCharactersAndTheTailAtTheEnd) {
  for (const auto& line : read_oracle_lines("tokenizer/decode_stream.jsonl")) {
    StreamDecoder decoder(qwen_tokenizer());
    std::vector<std::string> increments;
    for (const int32_t id : line["ids"].get<Ids>()) increments.push_back(decoder.push(id));
    EXPECT_EQ(increments, line["increments"].get<std::vector<std::string>>()) << line["id"];
    EXPECT_EQ(decoder.finish(), line["tail"].get<std::string>()) << line["id"];
    EXPECT_EQ(qwen_tokenizer().decode(line["ids"].get<Ids>()), line["decoded"].get<std::string>());
  }
}

TEST(StreamDecoder, LeavesSpecialTokensOutWhenAsked) {
  StreamDecoder decoder(qwen_tokenizer(), {.skip_special = true});
  EXPECT_EQ(decoder.push(64) + decoder.push(151645) + decoder.push(151667), "a<think>");
}

TEST(QwenTokenizer, KnowsItsVocabulary) {
  const Tokenizer& qwen = qwen_tokenizer();
  EXPECT_EQ(qwen.vocab_size(), 151669);
  EXPECT_EQ(qwen.token_to_id("<|im_end|>"), 151645);
  EXPECT_EQ(qwen.token_to_id("\xC4\xA0the"), 279);  // U+0120: the space of the byte alphabet
  EXPECT_EQ(qwen.token_to_id("no such token"), -1);
  EXPECT_EQ(qwen.id_to_token_bytes(279), " the");
  EXPECT_TRUE(qwen.is_special(151645));
  EXPECT_FALSE(qwen.is_special(151667));
  EXPECT_EQ(qwen.id_to_token_bytes(151935), "");
  EXPECT_EQ(qwen.decode(Ids{64, 151935, 65}), "ab");
  EXPECT_THROW(qwen.decode(Ids{-1}), Error);
}

class SmallTokenizer : public ::testing::TestWithParam<const char*> {};

TEST_P(SmallTokenizer, EncodesLikeTokenizers) {
  const Tokenizer tokenizer = small_tokenizer(GetParam());
  const std::string folder = std::string("tokenizer/") + GetParam();
  for (const auto& line : read_oracle_lines(folder + "/encode.jsonl")) {
    const auto text = line["text"].get<std::string>();
    const auto ids = line["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.encode(text), ids) << line["id"];
    EXPECT_EQ(tokenizer.encode(text, {.add_special = true}), line["ids_with_special"].get<Ids>());
    EXPECT_EQ(tokenizer.decode(ids), line["decoded"].get<std::string>()) << line["id"];
    EXPECT_EQ(tokenizer.decode(ids, {.skip_special = true}),
              line["decoded_skip_special"].get<std::string>());
  }
}

TEST_P(SmallTokenizer, DecodesArbitraryIdsLikeTokenizers) {
  const Tokenizer tokenizer = small_tokenizer(GetParam());
  const std::string folder = std::string("tokenizer/") + GetParam();
  for (const auto& line : read_oracle_lines(folder + "/decode.jsonl")) {
    const auto ids = line["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.decode(ids), line["decoded"].get<std::string>()) << line["id"];
    EXPECT_EQ(tokenizer.decode(ids, {.skip_special = true}),
              line["decoded_skip_special"].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Styles, SmallTokenizer,
                         ::testing::Values("smollm2_style", "llama3_style"));

// Variants of smollm2_style: added-token flags, prefix spaces, contiguous digits, NFC.
TEST(TokenizerVariants, EncodeAndDecodeLikeTokenizers) {
  const Json base = read_json_file(oracle_path("tokenizer/smollm2_style/tokenizer.json"));
  std::optional<Tokenizer> tokenizer;
  std::string current;
  for (const auto& line : read_oracle_lines("tokenizer_variants/cases.jsonl")) {
    const std::string patch = line["patch"].dump();
    if (patch != current) {
      Json json = base;
      json.update(parse_json(patch, "patch"));
      tokenizer = Tokenizer::from_json(json.dump(), "variant");
      current = patch;
    }
    const auto text = line["text"].get<std::string>();
    EXPECT_EQ(tokenizer->encode(text), line["ids"].get<Ids>()) << patch << text;
    EXPECT_EQ(tokenizer->encode(text, {.add_special = true}), line["ids_with_special"].get<Ids>())
        << patch << text;
    EXPECT_EQ(tokenizer->decode(line["ids"].get<Ids>()), line["decoded"].get<std::string>());
  }
}

class TokenizerDirectory : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
    std::filesystem::copy_file(oracle_path("tokenizer/smollm2_style/tokenizer.json"),
                               path_ / "tokenizer.json");
  }
  void TearDown() override { std::filesystem::remove_all(path_); }
  void write(const std::string& name, std::string_view text) {
    write_file_atomically(path_ / name, text);
  }
  const std::filesystem::path path_ =
      std::filesystem::path(::testing::TempDir()) /
      ("tokenizer_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
};

TEST_F(TokenizerDirectory, NeedsOnlyTokenizerJson) {
  const Tokenizer tokenizer = Tokenizer::from_directory(path_);
  EXPECT_TRUE(tokenizer.stop_ids().empty());
  EXPECT_TRUE(tokenizer.chat_templates().empty());
}

TEST_F(TokenizerDirectory, UnitesTheStopIdsOfAllThreeFiles) {
  write("config.json", R"({"eos_token_id": 7, "model_type": "llama"})");
  write("generation_config.json", R"({"eos_token_id": [0, 7]})");
  write("tokenizer_config.json", R"({"eos_token": {"content": "<|im_end|>"}, "pad_token": null})");
  const Tokenizer tokenizer = Tokenizer::from_directory(path_);
  EXPECT_EQ(tokenizer.stop_ids(), (Ids{0, 2, 7}));
  EXPECT_EQ(tokenizer.special_tokens().at("eos_token"), "<|im_end|>");
  EXPECT_EQ(tokenizer.special_tokens().count("pad_token"), 0u);
}

TEST_F(TokenizerDirectory, PrefersTheJinjaFileOverTheConfig) {
  write("tokenizer_config.json", R"({"chat_template": [{"name": "default", "template": "old"},
                                                       {"name": "rag", "template": "r"}]})");
  EXPECT_EQ(Tokenizer::from_directory(path_).chat_templates().at("default"), "old");
  write("chat_template.jinja", "new");
  const Tokenizer tokenizer = Tokenizer::from_directory(path_);
  EXPECT_EQ(tokenizer.chat_templates().at("default"), "new");
  EXPECT_EQ(tokenizer.chat_templates().at("rag"), "r");
}

TEST_F(TokenizerDirectory, GivesItsTemplateItsSpecialTokens) {
  write("tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  EXPECT_THROW(ChatTemplate::of(Tokenizer::from_directory(path_)), Error);
  write("chat_template.jinja", "{{ messages[0].content }}{{ eos_token }}\n");
  const Json messages = {{{"role", "user"}, {"content", "hi"}}};
  const OrderedJson ordered = messages;
  const Tokenizer tokenizer = Tokenizer::from_directory(path_);
  EXPECT_EQ(ChatTemplate::of(tokenizer).render({.messages = &ordered}), "hi<|im_end|>");
}

TEST_F(TokenizerDirectory, RefusesFilesThatContradictTheTokenizer) {
  write("tokenizer_config.json", R"({"eos_token": "<|nowhere|>"})");
  EXPECT_THROW(Tokenizer::from_directory(path_), Error);
  write("tokenizer_config.json", R"({"added_tokens_decoder": {"5": {"content": "<|im_end|>"}}})");
  EXPECT_THROW(Tokenizer::from_directory(path_), Error);
  write("tokenizer_config.json", "{}");
  write("config.json", R"({"eos_token_id": "2"})");
  EXPECT_THROW(Tokenizer::from_directory(path_), Error);
}

TEST(TokenizerJson, RefusesByNameWhatIsNotImplemented) {
  const Json base = read_json_file(oracle_path("tokenizer/smollm2_style/tokenizer.json"));
  const std::vector<std::pair<const char*, Json>> patches = {
      {"/model/type", "WordPiece"},
      {"/model/type", "Unigram"},
      {"/model/dropout", 0.1},
      {"/model/unk_token", "<unk>"},
      {"/model/byte_fallback", true},
      {"/model/continuing_subword_prefix", "##"},
      {"/model/end_of_word_suffix", "</w>"},
      {"/model/cache_capacity", 7},
      {"/normalizer", {{"type", "Lowercase"}}},
      {"/pre_tokenizer", {{"type", "Metaspace"}}},
      {"/pre_tokenizer/pretokenizers/0/type", "Whitespace"},
      {"/pre_tokenizer/pretokenizers/2", {{"type", "Digits"}}},
      {"/decoder", {{"type", "WordPiece"}}},
      {"/post_processor", {{"type", "BertProcessing"}}},
      {"/truncation", {{"max_length", 5}}},
      {"/surprise", 1}};
  for (const auto& [path, value] : patches) {
    Json json = base;
    json[Json::json_pointer(path)] = value;
    try {
      Tokenizer::from_json(json.dump(), "patched.json");
      ADD_FAILURE() << path << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnimplemented) << path << ": " << error.what();
      EXPECT_EQ(std::string(error.what()).rfind("patched.json: ", 0), 0u) << error.what();
    }
  }
}

TEST(TokenizerJson, RefusesMalformedFiles) {
  const Json base = read_json_file(oracle_path("tokenizer/smollm2_style/tokenizer.json"));
  const std::vector<std::pair<const char*, Json>> patches = {
      {"/model/vocab/a", -1},
      {"/model/vocab/a", 1e9},
      {"/model/vocab/a", "x"},
      {"/model/vocab/a", 4},
      {"/model/vocab", Json::array()},
      {"/model/merges/0", "a b c"},
      {"/model/merges/0", "a notthere"},
      {"/model/merges/0", {"a"}},
      {"/model/merges", "a b"},
      {"/added_tokens/0/id", 900},
      {"/added_tokens/0/id", 1},
      {"/added_tokens/0/content", ""},
      {"/added_tokens/0/content", std::string(600, 'x')},
      {"/added_tokens", 3},
      {"/pre_tokenizer/pretokenizers", 3},
      {"/decoder", nullptr}};
  for (const auto& [path, value] : patches) {
    Json json = base;
    json[Json::json_pointer(path)] = value;
    try {
      Tokenizer::from_json(json.dump(), "patched.json");
      ADD_FAILURE() << path << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << path << ": " << error.what();
    }
  }
}

TEST(TokenizerJson, RefusesEveryTruncation) {
  const std::string text = read_file(oracle_path("tokenizer/llama3_style/tokenizer.json"), 1 << 20);
  const size_t end = text.find_last_of('}');
  for (size_t size = 0; size <= end; size += 997) {
    EXPECT_THROW(Tokenizer::from_json(text.substr(0, size), "cut"), Error) << size;
  }
  EXPECT_THROW(Tokenizer::from_json(text.substr(0, end), "cut"), Error);
}

TEST(TokenizerInput, RefusesTextThatIsNotUtf8) {
  for (const char* text :
       {"a\xFF", "\xC3", "\xE2\x82", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xC0\x80"}) {
    EXPECT_THROW(qwen_tokenizer().encode(text), Error);
  }
}

std::string repeated(std::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

// Each of these is quadratic in a naive merge loop, regex engine or normalizer: minutes, not
// seconds. The limit is generous because sanitizers and a loaded machine slow everything.
TEST(TokenizerInput, TakesAMegabyteInSeconds) {
  const Tokenizer small = small_tokenizer("smollm2_style");
  for (const char* unit : {"a", " ", "\n", " \n", "1", "!", "<|im_", "\xCC\x81\xCC\x96",
                           "\xE4\xBD\xA0", "'s", "\t x", "\xF0\x9F\x98\x80"}) {
    const std::string text = repeated(unit, *unit == 'a' ? 1 << 20 : 1 << 18);
    const Stopwatch watch;
    const Ids ids = qwen_tokenizer().encode(text);
    EXPECT_EQ(qwen_tokenizer().encode(qwen_tokenizer().decode(ids)), ids) << unit;
    EXPECT_FALSE(small.encode(text).empty()) << unit;
    EXPECT_LT(watch.elapsed_ms(), 30'000) << unit;
  }
}

TEST(TokenizerInput, GivesEveryThreadTheSameIds) {
  const std::string text =
      repeated("It's 12 o'clock in \xE6\x9D\xB1\xE4\xBA\xAC, caf\x65\xCC\x81! ", 20'000);
  const Ids expected = qwen_tokenizer().encode(text);
  std::vector<Ids> got(4);
  {
    std::vector<std::jthread> threads;
    for (Ids& ids : got) {
      threads.emplace_back([&] { ids = qwen_tokenizer().encode(text); });
    }
  }
  for (const Ids& ids : got) EXPECT_EQ(ids, expected);
}

TEST(TokenizerInput, LosesNoCharacterOfALongPiece) {
  const std::string text = repeated("abcdefghijklmnopqrstuvwxyz", 100'000);
  EXPECT_EQ(qwen_tokenizer().decode(qwen_tokenizer().encode(text)), text);
}

}  // namespace
}  // namespace nibble
