#include "cli/bench_requests.h"

#include <utility>

#include "core/base/splitmix64.h"

namespace nibble {

BenchRequests::BenchRequests(const ServeBenchFlags& flags, int64_t vocab, std::string model_name)
    : flags_(flags), vocab_(vocab), model_name_(std::move(model_name)) {}

std::vector<int32_t> BenchRequests::prompt(int64_t number) const {
  uint64_t state = static_cast<uint64_t>(flags_.seed) + (static_cast<uint64_t>(number) << 32);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < flags_.prompt_tokens; ++t) {
    ids.push_back(static_cast<int32_t>(splitmix64(state) % static_cast<uint64_t>(vocab_)));
  }
  return ids;
}

OrderedJson BenchRequests::fields(int64_t number, int64_t tokens, double temperature) const {
  return {{"model", model_name_},        {"prompt", prompt(number)}, {"max_tokens", tokens},
          {"temperature", temperature},  {"seed", number},           {"ignore_eos", true},
          {"skip_special_tokens", false}};
}

std::string BenchRequests::streamed(int64_t number, int64_t tokens, double temperature) const {
  OrderedJson json = fields(number, tokens, temperature);
  json["stream"] = true;
  json["stream_options"] = {{"include_usage", true}};
  return json.dump();
}

}  // namespace nibble
