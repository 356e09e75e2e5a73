#include "core/data/prompts.h"

#include <numeric>

#include "core/base/fail.h"
#include "core/base/splitmix64.h"
#include "core/data/json_records.h"

namespace nibble {
std::vector<PromptRecord> read_prompts(const std::filesystem::path& path,
                                       const std::string& prompt_key,
                                       const std::string& label_key) {
  std::vector<PromptRecord> prompts;
  for_each_json_record(path, [&](JsonRecord& record) {
    Json& prompt = required_field(record, prompt_key);
    Json& label = required_field(record, label_key);
    check_prompt(prompt, record.where);
    prompts.push_back({std::move(prompt), std::move(label)});
  });
  return prompts;
}

PromptStream::PromptStream(int64_t num_prompts, uint64_t seed, bool shuffle)
    : num_prompts_(num_prompts), seed_(seed), shuffle_(shuffle) {
  NIBBLE_CHECK(num_prompts > 0, "{} prompts", num_prompts);
}

int64_t PromptStream::index_at(int64_t position) {
  const int64_t epoch = position / num_prompts_;
  if (epoch != epoch_) {
    epoch_ = epoch;
    order_.resize(static_cast<size_t>(num_prompts_));
    std::iota(order_.begin(), order_.end(), 0);
    uint64_t state = seed_ ^ (static_cast<uint64_t>(epoch) * 0xd1342543de82ef95ull);
    for (int64_t i = num_prompts_ - 1; shuffle_ && i > 0; --i) {
      const auto j = static_cast<int64_t>(splitmix64(state) % static_cast<uint64_t>(i + 1));
      std::swap(order_[static_cast<size_t>(i)], order_[static_cast<size_t>(j)]);
    }
  }
  return order_[static_cast<size_t>(position % num_prompts_)];
}

}  // namespace nibble
