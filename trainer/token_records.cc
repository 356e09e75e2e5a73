#include "trainer/token_records.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/ops/torch_parallel.h"
#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {
namespace {

class RecordEncoder {
 public:
  RecordEncoder(const RecordSource& source, const Tokenizer& tokenizer)
      : source_(source),
        tokenizer_(tokenizer),
        prompts_(tokenizer, source.tokenizer.string()),
        end_token_(tokenizer.end_id()) {}

  std::vector<TokenRecord> encode_file(const std::filesystem::path& file) const {
    std::vector<TextRecord> texts = read_text_records(file, source_.keys);
    std::vector<TokenRecord> records(texts.size());
    ops::torch_parallel().run(static_cast<int64_t>(texts.size()), 64,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  TextRecord& text = texts[static_cast<size_t>(i)];
                                  records[static_cast<size_t>(i)] = encode(text);
                                  text.prompt = Json();
                                  text.text = std::string();
                                }
                              });
    // Checked in order, so that the first one at fault is named whatever the threads did.
    for (size_t i = 0; i < records.size(); ++i) {
      check(records[i], fmt::format("{}:{}", file.string(), texts[i].line));
    }
    return records;
  }

 private:
  TokenRecord encode(const TextRecord& text) const {
    if (text.prompt.is_null()) {
      const auto ids = tokenizer_.encode(text.text, {.add_special = true});
      const auto first = ids.begin() + std::min<std::ptrdiff_t>(1, std::ssize(ids));
      return {{ids.begin(), first}, {first, ids.end()}};
    }
    if (end_token_ < 0) {
      fail(ErrorCode::kInvalidArgument,
           "'{}' does not say what ends a response: tokenizer_config.json needs an eos_token that "
           "its tokenizer has",
           source_.tokenizer.string());
    }
    TokenRecord record{prompts_.encode(text.prompt), tokenizer_.encode(text.text)};
    if (record.response.empty() || record.response.back() != end_token_) {
      record.response.push_back(end_token_);
    }
    return record;
  }

  void check(const TokenRecord& record, const std::string& where) const {
    if (record.prompt.empty() || record.response.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "{}: the record has {} tokens before what is learned and {} to learn; it needs one of "
           "each at least",
           where, record.prompt.size(), record.response.size());
    }
    const auto tokens = static_cast<int64_t>(record.prompt.size() + record.response.size());
    if (tokens > source_.max_positions) {
      fail(ErrorCode::kInvalidArgument,
           "{}: the record has {} tokens, more than rollout.max_positions = {}: raise it, or "
           "shorten or cut the record",
           where, tokens, source_.max_positions);
    }
  }

  const RecordSource& source_;
  const Tokenizer& tokenizer_;
  const PromptEncoder prompts_;
  const int32_t end_token_;
};

MicroBatch build(std::span<const TokenRecord* const> records) {
  MicroBatch batch;
  std::vector<SequenceGroup> sequences;
  batch.sample_begin.push_back(0);
  for (const TokenRecord* record : records) {
    sequences.push_back({record->prompt, {record->response}});
    batch.mask.insert(batch.mask.end(), record->response.size(), uint8_t{1});
    batch.sample_begin.push_back(static_cast<int64_t>(batch.mask.size()));
  }
  batch.packed = pack_groups(sequences);
  return batch;
}

}  // namespace

TokenRecords load_token_records(const RecordSource& source) {
  const Tokenizer tokenizer = Tokenizer::from_directory(source.tokenizer);
  const RecordEncoder encoder(source, tokenizer);
  TokenRecords records{encoder.encode_file(source.train), {}};
  if (!source.eval.empty()) records.eval = encoder.encode_file(source.eval);
  return records;
}

std::vector<const TokenRecord*> share_records(std::span<const TokenRecord* const> batch, int rank,
                                              int world) {
  std::vector<int64_t> tokens;
  for (const TokenRecord* record : batch) tokens.push_back(record->computed_tokens());
  const std::vector<std::vector<int64_t>> parts = balance_groups(tokens, world);
  std::vector<const TokenRecord*> share;
  for (const int64_t i : parts[static_cast<size_t>(rank)]) {
    share.push_back(batch[static_cast<size_t>(i)]);
  }
  return share;
}

std::vector<MicroBatch> make_record_batches(std::span<const TokenRecord* const> records,
                                            int64_t max_tokens) {
  std::vector<MicroBatch> batches;
  size_t first = 0;
  int64_t tokens = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    const int64_t extra = records[i]->computed_tokens();
    if (i > first && tokens + extra > max_tokens) {
      batches.push_back(build(records.subspan(first, i - first)));
      first = i;
      tokens = 0;
    }
    tokens += extra;
  }
  if (first < records.size()) batches.push_back(build(records.subspan(first)));
  return batches;
}

}  // namespace nibble
