#include "trainer/token_records.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModel = NIBBLE_SOURCE_DIR "/tests/oracles/models/dense_untied/bf16";
constexpr int32_t kEnd = 486;  // <|im_end|>, its eos_token

class LoadTokenRecords : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_rec_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  RecordSource source(const std::string& text) {
    write_file_atomically(folder_ / "train.jsonl", text);
    return {folder_ / "train.jsonl", "", {}, kModel, 64};
  }
  void expect_refusal(const RecordSource& from, const std::vector<std::string>& parts) {
    try {
      load_token_records(from);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      for (const std::string& part : parts) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      }
    }
  }

  fs::path folder_;
};

TEST_F(LoadTokenRecords, AResponseEndsWithTheEndTokenOnce) {
  const auto records =
      load_token_records(source("{\"prompt\":\"value 1 is\",\"response\":\" 2\"}\n"
                                "{\"prompt\":\"value 1 is\",\"response\":\" 2<|im_end|>\"}\n"));
  const Tokenizer tokenizer = Tokenizer::from_directory(kModel);
  std::vector<int32_t> want = tokenizer.encode(" 2");
  want.push_back(kEnd);
  for (const TokenRecord& record : records.train) {
    EXPECT_EQ(record.prompt, tokenizer.encode("value 1 is"));
    EXPECT_EQ(record.response, want);
  }
}

TEST_F(LoadTokenRecords, AChatIsEncodedAsForARollout) {
  const auto records = load_token_records(
      source("{\"prompt\":[{\"role\":\"user\",\"content\":\"hi\"}],\"response\":\"yes\"}\n"));
  const Tokenizer tokenizer = Tokenizer::from_directory(kModel);
  const PromptEncoder encoder(tokenizer, "model");
  EXPECT_EQ(records.train[0].prompt,
            encoder.encode(Json::parse("[{\"role\":\"user\",\"content\":\"hi\"}]")));
}

TEST_F(LoadTokenRecords, ATextIsLearnedAfterItsFirstTokenAndGetsNoEnd) {
  const auto records = load_token_records(source("{\"text\":\"value 1 plus 2\"}\n"));
  const Tokenizer tokenizer = Tokenizer::from_directory(kModel);
  std::vector<int32_t> ids = records.train[0].prompt;
  EXPECT_EQ(ids.size(), 1u);
  ids.insert(ids.end(), records.train[0].response.begin(), records.train[0].response.end());
  EXPECT_EQ(ids, tokenizer.encode("value 1 plus 2"));
}

TEST_F(LoadTokenRecords, NamesTheLineOfARecordThatIsTooLongOrTooShort) {
  const std::string good = "{\"text\":\"value 1 plus 2\"}\n";
  const std::string file = (folder_ / "train.jsonl").string();
  RecordSource tight = source(good + good);
  const auto tokens = load_token_records(tight).train[0].computed_tokens() + 1;
  tight.max_positions = tokens;
  EXPECT_EQ(load_token_records(tight).train.size(), 2u);
  const std::string longer = "{\"text\":\"value 1 plus 2 is\"}\n";
  tight = source(good + "\n" + longer + longer);
  tight.max_positions = tokens;
  expect_refusal(tight, {file + ":3", "rollout.max_positions"});
  expect_refusal(source(good + "{\"text\":\"1\"}\n"), {file + ":2", "0 to learn"});
}

TEST_F(LoadTokenRecords, ATokenizerWithoutEndTokenIsRefusedForResponsesOnly) {
  const fs::path model = folder_ / "model";
  fs::create_directory(model);
  fs::copy_file(kModel / "tokenizer.json", model / "tokenizer.json");
  RecordSource from = source("{\"text\":\"value 1 plus 2\"}\n");
  from.tokenizer = model;
  EXPECT_EQ(load_token_records(from).train.size(), 1u);
  from = source("{\"prompt\":\"value\",\"response\":\"2\"}\n");
  from.tokenizer = model;
  expect_refusal(from, {model.string(), "eos_token"});
}

std::vector<TokenRecord> records_of(const std::vector<int>& response_tokens) {
  std::vector<TokenRecord> records;
  records.reserve(response_tokens.size());
  for (const int count : response_tokens) {
    records.push_back({{1, 2}, std::vector<int32_t>(static_cast<size_t>(count), 3)});
  }
  return records;
}

std::vector<const TokenRecord*> pointers(const std::vector<TokenRecord>& records) {
  std::vector<const TokenRecord*> all;
  all.reserve(records.size());
  for (const TokenRecord& record : records) all.push_back(&record);
  return all;
}

TEST(RecordBatches, HoldEveryTokenOnceWithinTheLimit) {
  const auto records = records_of({3, 9, 1, 1, 40, 2, 5});
  int64_t targets = 0, computed = 0;
  for (const MicroBatch& batch : make_record_batches(pointers(records), 16)) {
    const auto tokens = static_cast<int64_t>(batch.packed.tokens.size());
    EXPECT_TRUE(tokens <= 16 || batch.sample_begin.size() == 2u) << tokens;
    EXPECT_EQ(batch.packed.target.size(), batch.mask.size());
    EXPECT_EQ(batch.sample_begin.back(), std::ssize(batch.mask));
    targets += std::accumulate(batch.mask.begin(), batch.mask.end(), int64_t{0});
    computed += tokens;
  }
  EXPECT_EQ(targets, 3 + 9 + 1 + 1 + 40 + 2 + 5);
  int64_t want = 0;
  for (const TokenRecord& record : records) want += record.computed_tokens();
  EXPECT_EQ(computed, want);
  EXPECT_TRUE(make_record_batches({}, 16).empty());
}

TEST(ShareRecords, SplitsABatchAmongRanks) {
  const auto records = records_of({3, 9, 1, 1, 40, 2, 5});
  const auto all = pointers(records);
  std::vector<const TokenRecord*> joined;
  for (int rank = 0; rank < 3; ++rank) {
    for (const TokenRecord* record : share_records(all, rank, 3)) joined.push_back(record);
  }
  std::sort(joined.begin(), joined.end());
  EXPECT_EQ(joined, all);
  EXPECT_EQ(share_records(all, 0, 3).size(), 1u) << "the longest record is a share of its own";
}

}  // namespace
}  // namespace nibble
