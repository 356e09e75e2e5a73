#include "convert/calibration_data.h"

#include <algorithm>
#include <bit>
#include <ctime>
#include <span>
#include <utility>

#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/own_binary.h"
#include "core/base/sha256.h"
#include "core/data/json_records.h"
#include "core/data/record_set.h"
#include "core/data/shuffled_order.h"
#include "core/tokenizer/chat_template.h"

namespace nibble {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 30;       // of all windows: 4 GiB
constexpr int64_t kMaxHeldBytes = int64_t{256} << 20;  // of records read ahead
constexpr double kMaxRecordsAhead = 1 << 16;

void check_options(const CalibrationDataOptions& options) {
  const int64_t samples = options.num_samples;
  const int64_t length = options.max_sequence_length;
  if (samples > 0 && length > 0 && samples <= kMaxTokens / length) return;
  fail(ErrorCode::kInvalidArgument,
       "--num-calibration-samples is {} and --max-sequence-length is {}; both must be > 0, and "
       "their product at most {}",
       samples, length, kMaxTokens);
}

// Some templates write today's date; windows do not depend on the day. It is the one that Llama 3
// takes where no clock is at hand.
std::tm chat_date() {
  std::tm date{};
  date.tm_year = 124;
  date.tm_mon = 6;
  date.tm_mday = 26;
  date.tm_wday = 5;
  date.tm_yday = 207;
  return date;
}

std::vector<int32_t> encode_chat(const Json& messages, const std::string& where,
                                 const PromptEncoder& encoder) {
  if (messages.is_string()) {
    const Json parsed =
        parse_json(messages.get_ref<const std::string&>(), where + ": 'messages' as JSON");
    if (!parsed.is_string()) return encode_chat(parsed, where, encoder);
  }
  if (!messages.is_array()) {
    fail(ErrorCode::kInvalidArgument, "{}: 'messages' must be a list of chat messages", where);
  }
  check_prompt(messages, where);
  const OrderedJson ordered = OrderedJson::parse(messages.dump());
  return with_context(
      where, [&] { return encoder.encode_chat({.messages = &ordered, .now = chat_date()}); });
}

std::vector<int32_t> encode_record(const RecordText& record, const Tokenizer& tokenizer,
                                   const PromptEncoder& encoder) {
  const Json value = parse_json(record.json, record.where);
  const auto text = value.find("text");
  if (text != value.end()) {
    if (!text->is_string() || text->get_ref<const std::string&>().empty()) {
      fail(ErrorCode::kInvalidArgument, "{}: 'text' must be a non-empty string", record.where);
    }
    return with_context(record.where, [&] {
      return tokenizer.encode(text->get_ref<const std::string&>(), {.add_special = true});
    });
  }
  const auto messages = value.find("messages");
  if (messages == value.end()) {
    fail(ErrorCode::kInvalidArgument,
         "{}: it has neither 'text' nor 'messages', which calibration reads", record.where);
  }
  return encode_chat(*messages, record.where, encoder);
}

// Cuts a stream of tokens into windows of one length.
class Windows {
 public:
  Windows(const CalibrationDataOptions& options, int32_t end_token)
      : num_wanted_(static_cast<size_t>(options.num_samples)),
        length_(static_cast<size_t>(options.max_sequence_length)),
        end_token_(end_token) {}

  bool is_full() const { return data_.windows.size() == num_wanted_; }

  void add(const std::vector<int32_t>& document) {
    if (end_token_ >= 0 && data_.num_tokens > 0 && last_token_ != end_token_) add_token(end_token_);
    for (const int32_t token : document) add_token(token);
    ++data_.num_records;
  }

  // How many more records will do, going by those so far; at first, one for each window.
  int64_t records_wanted() const {
    const double missing = static_cast<double>(num_wanted_ * length_) - data_.num_tokens;
    const double tokens_each = data_.num_tokens == 0
                                   ? static_cast<double>(length_)
                                   : static_cast<double>(data_.num_tokens) / data_.num_records;
    return 1 + static_cast<int64_t>(std::min(1.1 * missing / tokens_each, kMaxRecordsAhead));
  }

  CalibrationData take() { return std::move(data_); }
  const CalibrationData& data() const { return data_; }

 private:
  void add_token(int32_t token) {
    ++data_.num_tokens;
    last_token_ = token;
    if (is_full()) return;
    window_.push_back(token);
    if (window_.size() < length_) return;
    data_.windows.push_back(std::move(window_));
    window_ = {};
  }

  const size_t num_wanted_;
  const size_t length_;
  const int32_t end_token_;  // -1: none
  CalibrationData data_;
  std::vector<int32_t> window_;  // that is not full
  int32_t last_token_ = -1;
};

std::string digest_of(const std::vector<std::vector<int32_t>>& windows) {
  static_assert(std::endian::native == std::endian::little);
  Sha256 hash;
  hash.update(fmt::format("{} windows of {} tokens\n", windows.size(), windows.front().size()));
  for (const auto& window : windows) hash.update(std::as_bytes(std::span(window)));
  return hash.finish();
}

[[noreturn]] void fail_too_little(const CalibrationDataOptions& options,
                                  const CalibrationData& data) {
  const int64_t length = options.max_sequence_length;
  const int64_t windows = data.num_tokens / length;
  const int64_t others = options.held_out_samples;
  const int64_t longest = data.num_tokens / (others + 1);
  const std::string lower =
      windows > others
          ? fmt::format("lower --num-calibration-samples to {} or less", windows - others)
      : longest > 1 ? fmt::format(
                          "lower --max-sequence-length to {} or less, and perhaps "
                          "--num-calibration-samples",
                          longest)
                    : "give more text";
  fail(ErrorCode::kInvalidArgument,
       "'{}' has {} tokens in {} records; calibration wants {} ({} samples of {} tokens): {}, or "
       "give it more data",
       options.path.string(), data.num_tokens, data.num_records, options.num_samples * length,
       options.num_samples, length, lower);
}

std::filesystem::path parquet_program(const CalibrationDataOptions& options) {
  if (!options.parquet_program.empty()) return options.parquet_program;
  return own_binary().parent_path() / "nibble-parquet";
}

}  // namespace

CalibrationData load_calibration_data(const CalibrationDataOptions& options,
                                      const Tokenizer& tokenizer, const PromptEncoder& encoder) {
  check_options(options);
  RecordSet records(options.path, {"text", "messages"}, parquet_program(options));
  ShuffledOrder order(records.num_records(), options.seed);
  Windows windows(options, tokenizer.end_id());
  std::vector<int64_t> drawn;  // in order, not tokenized yet
  while (!windows.is_full()) {
    while (order.num_left() > 0 && std::ssize(drawn) < windows.records_wanted()) {
      drawn.push_back(order.next());
    }
    if (drawn.empty()) fail_too_little(options, windows.data());
    const std::vector<RecordText> texts = records.read(drawn, kMaxHeldBytes);
    for (const RecordText& text : texts) {
      windows.add(encode_record(text, tokenizer, encoder));
      if (windows.is_full()) break;
    }
    drawn.erase(drawn.begin(), drawn.begin() + std::ssize(texts));
  }
  CalibrationData data = windows.take();
  data.digest = digest_of(data.windows);
  return data;
}

}  // namespace nibble
