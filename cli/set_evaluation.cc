#include "cli/set_evaluation.h"

#include <fmt/format.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/log.h"

namespace nibble {
namespace {

constexpr double kLogIntervalMs = 10'000.0;

/// Scores finished groups, in order, and says from time to time how far it is.
class Marks {
 public:
  Marks(const EvalSet& set, const TextCodec& codec)
      : set_(set), codec_(codec), reward_process_(start_rewards(set.reward)) {}

  void add(const std::vector<Completion>& samples) {
    const size_t number = result_.rewards.size();
    std::vector<RewardSample> batch;
    for (const Completion& done : samples) {
      batch.push_back({*codec_.response_text(done.tokens), set_.prompts[number].label});
      result_.generated_tokens += std::ssize(done.tokens);
    }
    std::vector<std::optional<double>> rewards;
    for (const RewardOutcome& outcome : reward_process_->score(batch)) {
      const auto* reward = std::get_if<double>(&outcome);
      rewards.push_back(reward != nullptr ? std::optional(*reward) : std::nullopt);
      if (reward == nullptr && result_.first_error.empty()) {
        result_.first_error =
            fmt::format("prompt {}: {}", number + 1, std::get<Error>(outcome).what());
      }
    }
    result_.rewards.push_back(std::move(rewards));
    if (since_log_.elapsed_ms() < kLogIntervalMs) return;
    since_log_.restart_ms();
    get_logger("eval")->info("set={} prompts={}/{} generated_tokens={}", set_.name, number + 1,
                             set_.prompts.size(), result_.generated_tokens);
  }

  SetResult finish() {
    std::vector<std::vector<double>> scored;
    for (const auto& of_prompt : result_.rewards) {
      std::vector<double>& rewards = scored.emplace_back();
      for (const auto& reward : of_prompt) {
        if (reward) rewards.push_back(*reward);
      }
    }
    result_.stats = summarize_rewards(scored, set_.sampling.samples);
    return std::move(result_);
  }

 private:
  const EvalSet& set_;
  const TextCodec& codec_;
  const std::unique_ptr<RewardProcess> reward_process_;
  SetResult result_;
  Stopwatch since_log_;
};

}  // namespace

SetResult evaluate_set(const EvalSet& set, const LoadedModel& model, const TextCodec& codec) {
  const PromptEncoder& encoder = codec.encoder();
  OfflineGenerator generator(model, codec, set.sampling);
  Marks marks(set, codec);
  size_t next = 0;
  while (next < set.prompts.size() || generator.has_work()) {
    for (; next < set.prompts.size() && generator.has_room(); ++next) {
      generator.submit(encoder.encode(set.prompts[next].content),
                       fmt::format("{} prompt {}", set.data.string(), next + 1));
    }
    generator.step();
    while (const auto samples = generator.take_next()) marks.add(*samples);
  }
  generator.finish();
  return marks.finish();
}

}  // namespace nibble
