#include "convert/calibration_data.h"

#include <fmt/format.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/data/jsonl_file.h"
#include "core/tokenizer/chat_template.h"
#include "tests/core/data/data_folder.h"
#include "tests/core/parquet/parquet_fixtures.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

fs::path model() { return fs::path(NIBBLE_SOURCE_DIR) / "tests/oracles/models/moe_norm/bf16"; }

std::vector<int32_t> joined(const CalibrationData& data) {
  std::vector<int32_t> tokens;
  for (const auto& window : data.windows) tokens.insert(tokens.end(), window.begin(), window.end());
  return tokens;
}

class Calibration : public DataFolder {
 protected:
  CalibrationData load(const fs::path& path, int64_t num_samples, int64_t length,
                       uint64_t seed = 0) const {
    return load_calibration_data({path, num_samples, length, seed, parquet_program()}, tokenizer_,
                                 encoder_);
  }

  Tokenizer tokenizer_ = Tokenizer::from_directory(model());
  PromptEncoder encoder_{tokenizer_, model().string()};
};

// Cuts a stream at its end tokens; every part but the last is a whole document.
std::vector<std::vector<int32_t>> documents_of(const std::vector<int32_t>& tokens, int32_t end) {
  std::vector<std::vector<int32_t>> documents(1);
  for (const int32_t token : tokens) {
    if (token == end) {
      documents.emplace_back();
    } else {
      documents.back().push_back(token);
    }
  }
  return documents;
}

TEST_F(Calibration, WindowsHoldWholeRecordsEachOnceInAnOrderOfTheSeed) {
  std::multimap<std::vector<int32_t>, int> known;
  std::vector<std::vector<int32_t>> in_file_order;
  std::string lines;
  for (int i = 0; i < 200; ++i) {
    const std::string text =
        fmt::format("record {} of {}", i * i, std::string(static_cast<size_t>(i % 13), 'a'));
    lines += Json({{"text", text}}).dump() + "\n";
    in_file_order.push_back(tokenizer_.encode(text));
    known.emplace(in_file_order.back(), i);
  }
  const CalibrationData data = load(write("a.jsonl", lines), 30, 40, 5);
  ASSERT_EQ(data.windows.size(), 30u);
  for (const auto& window : data.windows) EXPECT_EQ(window.size(), 40u);
  auto documents = documents_of(joined(data), tokenizer_.end_id());
  EXPECT_EQ(data.num_records, std::ssize(documents));
  EXPECT_LT(data.num_records, 200);
  EXPECT_GE(data.num_tokens, 30 * 40);
  documents.pop_back();  // its end was cut off
  for (const auto& document : documents) {
    const auto found = known.find(document);
    ASSERT_NE(found, known.end()) << tokenizer_.decode(document);
    known.erase(found);
  }
  in_file_order.resize(documents.size());
  EXPECT_NE(documents, in_file_order);
}

TEST_F(Calibration, AllTokensCanBeUsed) {
  std::string lines;
  int64_t num_tokens = 0;
  for (int i = 0; i < 50; ++i) {
    const std::string text = fmt::format("number {}", i);
    lines += Json({{"text", text}}).dump() + "\n";
    num_tokens += std::ssize(tokenizer_.encode(text)) + 1;
  }
  --num_tokens;  // no end token behind the last one
  const auto path = write("a.jsonl", lines);
  const CalibrationData data = load(path, 1, num_tokens);
  EXPECT_EQ(data.num_tokens, num_tokens);
  EXPECT_EQ(data.num_records, 50);
  expect_error(ErrorCode::kInvalidArgument,
               {path.string(), fmt::format("{} tokens in 50 records", num_tokens),
                fmt::format("wants {}", num_tokens + 1), "--max-sequence-length to",
                std::to_string(num_tokens)},
               [&] { load(path, 1, num_tokens + 1); });
}

TEST_F(Calibration, TooLittleDataSaysWhatToLower) {
  const auto path = write("a.jsonl", "{\"text\":\"" + std::string(100, 'a') + " b c d e f\"}\n");
  const int64_t num_tokens = load(path, 1, 1).num_tokens;
  ASSERT_GE(num_tokens, 4);
  const int64_t fitting = num_tokens / 2;
  expect_error(ErrorCode::kInvalidArgument,
               {fmt::format("{} tokens", num_tokens), "wants 200 (100 samples of 2 tokens)",
                fmt::format("--num-calibration-samples to {} ", fitting)},
               [&] { load(path, 100, 2); });
  EXPECT_EQ(std::ssize(load(path, fitting, 2).windows), fitting);
}

TEST_F(Calibration, TheSameRecordsGiveTheSameWindowsFromParquet) {
  const CalibrationData texts = load(parquet_fixture("texts.jsonl"), 20, 64, 3);
  for (const char* kind : {"none", "snappy", "zstd", "dictionary", "large", "delta", "and_chats"}) {
    const auto data = load(parquet_fixture(fmt::format("texts_{}.parquet", kind)), 20, 64, 3);
    EXPECT_EQ(data.windows, texts.windows) << kind;
    EXPECT_EQ(data.num_records, texts.num_records) << kind;
  }
  const CalibrationData chats = load(parquet_fixture("chats.jsonl"), 20, 64, 3);
  for (const char* kind : {"nested", "large", "dictionary", "json"}) {
    const auto data = load(parquet_fixture(fmt::format("chats_{}.parquet", kind)), 20, 64, 3);
    EXPECT_EQ(data.windows, chats.windows) << kind;
  }
}

TEST_F(Calibration, TheDigestIsThatOfTheWindows) {
  const auto path = parquet_fixture("texts.jsonl");
  const CalibrationData data = load(path, 4, 32);
  EXPECT_EQ(data.digest.size(), 64u);
  EXPECT_EQ(load(path, 4, 32).digest, data.digest);
  EXPECT_EQ(load(parquet_fixture("texts_zstd.parquet"), 4, 32).digest, data.digest);
  EXPECT_NE(load(path, 4, 32, 1).digest, data.digest);
  EXPECT_NE(load(path, 5, 32).digest, data.digest);
  // The same tokens, cut otherwise.
  const CalibrationData halves = load(path, 8, 16);
  EXPECT_EQ(joined(halves), joined(data));
  EXPECT_NE(halves.digest, data.digest);
}

TEST_F(Calibration, ADirectoryIsItsFilesInTheOrderOfNames) {
  JsonlFile lines(parquet_fixture("texts.jsonl"));
  std::string first;
  for (const RecordText& record : read_all(lines)) first += record.json + "\n";
  write("a.jsonl", first);
  fs::copy_file(parquet_fixture("texts_zstd.parquet"), folder_ / "b.parquet");
  write("c.csv", "text\n1\n");
  const CalibrationData data = load(folder_, 40, 64, 9);
  fs::create_directory(folder_ / "one");
  write("one/a.jsonl", first + first);
  EXPECT_EQ(load(folder_ / "one", 40, 64, 9).digest, data.digest);
}

TEST_F(Calibration, AChatIsAWholeConversationWithoutAPromptForMore) {
  const OrderedJson chat = {{{"role", "user"}, {"content", "Why?"}},
                            {{"role", "assistant"}, {"content", "Because."}}};
  const std::string rendered = ChatTemplate::of(tokenizer_).render({.messages = &chat});
  const std::vector<int32_t> expected = tokenizer_.encode(rendered);
  for (const Json& messages : {Json::parse(chat.dump()), Json(chat.dump())}) {
    const auto path = write("a.jsonl", Json({{"messages", messages}}).dump());
    const CalibrationData data = load(path, 1, std::ssize(expected));
    EXPECT_EQ(data.windows[0], expected);
    EXPECT_EQ(data.num_tokens, std::ssize(expected));
  }
}

TEST_F(Calibration, TextGoesBeforeMessages) {
  const auto path = write(
      "a.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"no\"}],\"text\":\"this one\"}\n");
  const std::vector<int32_t> expected = tokenizer_.encode("this one");
  EXPECT_EQ(load(path, 1, std::ssize(expected)).windows[0], expected);
}

TEST_F(Calibration, AnEndTokenIsNotDoubledAndNotMadeUp) {
  const std::string end = tokenizer_.special_tokens().at("eos_token");
  const auto path = write("a.jsonl", Json({{"text", "ab" + end}}).dump() + "\n" +
                                         Json({{"text", "ab" + end}}).dump() + "\n");
  std::vector<int32_t> expected = tokenizer_.encode("ab" + end + "ab" + end);
  EXPECT_EQ(load(path, 1, std::ssize(expected)).windows[0], expected);

  const Tokenizer bare = Tokenizer::from_file(model() / "tokenizer.json");
  write("a.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"ab\"}\n");
  expected = bare.encode("ab");
  const int64_t once = std::ssize(expected);
  expected.insert(expected.end(), expected.begin(), expected.begin() + once);
  const PromptEncoder encoder(bare, "bare");
  EXPECT_EQ(load_calibration_data({path, 1, 2 * once}, bare, encoder).windows[0], expected);
  const auto chat = write("b.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}");
  expect_error(ErrorCode::kInvalidArgument, {chat.string() + ":1", "bare", "no chat template"},
               [&] {
                 load_calibration_data({chat, 1, 1}, bare, encoder);
               });
}

TEST_F(Calibration, NoMoreRecordsAreLookedAtThanItTakes) {
  std::string lines;
  for (int i = 0; i < 5000; ++i) lines += "{\"text\":\"some words of a record\"}\n";
  const CalibrationData data = load(write("a.jsonl", lines), 4, 16);
  EXPECT_LT(data.num_records, 4 * 16);
}

TEST_F(Calibration, NamesLineAndFieldOfABadRecord) {
  const std::string good = "{\"text\":\"good\"}\n";
  for (const auto& [line, fragment] :
       {std::pair<std::string, std::string>{"{", "JSON"},
        {"[1]", "neither 'text' nor 'messages'"},
        {"{\"prompt\":\"a\"}", "neither 'text' nor 'messages'"},
        {"{\"text\":\"\"}", "'text' must be a non-empty string"},
        {"{\"text\":7}", "'text' must be a non-empty string"},
        {"{\"text\":null,\"messages\":[]}", "'text' must be a non-empty string"},
        {"{\"messages\":{}}", "'messages' must be a list"},
        {"{\"messages\":[]}", "chat messages"},
        {"{\"messages\":null}", "'messages' must be a list"},
        {"{\"messages\":\"[{\"}", "'messages' as JSON"},
        {"{\"messages\":\"\\\"[]\\\"\"}", "'messages' must be a list"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "role and content"}}) {
    const auto path = write("a.jsonl", good + line + "\n");
    expect_error(ErrorCode::kInvalidArgument, {path.string() + ":2", fragment},
                 [&] { load(path, 1000, 1000); });
  }
}

TEST_F(Calibration, NamesRowAndColumnOfABadParquetFile) {
  struct Case {
    const char* file;
    std::vector<std::string> fragments;
  };
  for (const Case& bad : {Case{"bad_null", {"row 1", "'text' must be a non-empty string"}},
                          {"bad_empty_text", {"row 2", "'text' must be a non-empty string"}},
                          {"bad_type", {"row ", "'text' must be a non-empty string"}},
                          {"bad_binary", {"row ", "'text'", "type binary"}},
                          {"bad_utf8", {"row 1", "'text'", "UTF-8"}},
                          {"bad_long_row", {"row 1", "'text'", "bytes"}},
                          {"bad_columns", {"no column 'text' or 'messages'", "'prompt'"}},
                          {"bad_chat", {"row 0", "role and content"}},
                          {"bad_json", {"row 1", "'messages' as JSON"}},
                          {"no_rows", {"no records"}}}) {
    const auto path = parquet_fixture(fmt::format("{}.parquet", bad.file));
    std::vector<std::string> fragments = bad.fragments;
    fragments.push_back(path.string());
    expect_error(ErrorCode::kInvalidArgument, fragments, [&] { load(path, 1000, 1000); });
  }
}

TEST_F(Calibration, OptionsOutOfRangeNameTheFlags) {
  const auto path = parquet_fixture("texts.jsonl");
  for (const auto& [samples, length] :
       {std::pair<int64_t, int64_t>{0, 10}, {10, 0}, {-1, 10}, {10, -1}, {1 << 20, 1 << 20}}) {
    expect_error(ErrorCode::kInvalidArgument,
                 {"--num-calibration-samples", "--max-sequence-length", std::to_string(samples)},
                 [&, samples = samples, length = length] { load(path, samples, length); });
  }
}

}  // namespace
}  // namespace nibble
