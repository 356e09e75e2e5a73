#include "core/data/prompts.h"

#include <fstream>
#include <numeric>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxLineBytes = 16 << 20;
constexpr size_t kMaxPrompts = 10'000'000;

void check_content(const Json& content, const std::string& where) {
  if (content.is_string() && !content.get_ref<const std::string&>().empty()) return;
  if (content.is_array() && !content.empty()) {
    for (const Json& message : content) {
      if (!message.is_object() || !message.contains("role") || !message.contains("content")) {
        fail(ErrorCode::kInvalidArgument, "{}: a chat message needs role and content", where);
      }
    }
    return;
  }
  fail(ErrorCode::kInvalidArgument,
       "{}: the prompt must be a non-empty string or a list of chat messages", where);
}

uint64_t splitmix64(uint64_t& state) {
  uint64_t x = (state += 0x9e3779b97f4a7c15ull);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace

std::vector<PromptRecord> read_prompts(const std::filesystem::path& path,
                                       const std::string& prompt_key,
                                       const std::string& label_key) {
  std::ifstream in(path);
  if (!in || std::filesystem::is_directory(path)) {
    fail(ErrorCode::kNotFound,
         "cannot open data file '{}' (data.train or eval.data; a path is taken from the directory "
         "where the command runs)",
         path.string());
  }
  std::vector<PromptRecord> prompts;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.empty()) continue;
    const std::string where = fmt::format("{}:{}", path.string(), number);
    if (line.size() > kMaxLineBytes || prompts.size() == kMaxPrompts) {
      fail(ErrorCode::kInvalidArgument, "{}: more than {} bytes in a line or {} lines", where,
           kMaxLineBytes, kMaxPrompts);
    }
    Json record = parse_json(line, where);
    for (const std::string& key : {prompt_key, label_key}) {
      if (!record.is_object() || !record.contains(key)) {
        fail(ErrorCode::kInvalidArgument, "{}: no field '{}'", where, key);
      }
    }
    check_content(record[prompt_key], where);
    prompts.push_back({std::move(record[prompt_key]), std::move(record[label_key])});
  }
  if (prompts.empty()) {
    fail(ErrorCode::kInvalidArgument, "data file '{}' has no prompts", path.string());
  }
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
