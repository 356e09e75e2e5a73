#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/engine_ranks.h"
#include "cli/eval_stats.h"
#include "cli/offline_generator.h"
#include "cli/reward_flags.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/data/prompts.h"

namespace nibble {
namespace {

constexpr double kLogIntervalMs = 10'000.0;

struct EvalFlags {
  SamplingFlags sampling;
  RewardFlags reward;
  std::filesystem::path data;
  std::string prompt_key = "prompt";
  std::string label_key = "label";
  bool json = false;
  EvalFlags() { sampling.samples = 8; }
};

/// Scores finished groups, in order, and says from time to time how far it is.
class Marks {
 public:
  Marks(const std::vector<PromptRecord>& prompts, const TextCodec& codec, RewardProcess& rewards)
      : prompts_(prompts), codec_(codec), reward_process_(rewards) {}

  void add(const std::vector<Completion>& samples) {
    const size_t number = rewards_.size();
    std::vector<RewardSample> batch;
    for (const Completion& done : samples) {
      batch.push_back({*codec_.response_text(done.tokens), prompts_[number].label});
      tokens_ += std::ssize(done.tokens);
    }
    std::vector<double> scored;
    for (const RewardOutcome& outcome : reward_process_.score(batch)) {
      if (const auto* reward = std::get_if<double>(&outcome)) {
        scored.push_back(*reward);
      } else if (first_error_.empty()) {
        first_error_ = fmt::format("prompt {}: {}", number + 1, std::get<Error>(outcome).what());
      }
    }
    rewards_.push_back(std::move(scored));
    if (since_log_.elapsed_ms() < kLogIntervalMs) return;
    since_log_.restart_ms();
    get_logger("eval")->info("prompts={}/{} generated_tokens={}", rewards_.size(), prompts_.size(),
                             tokens_);
  }

  const std::vector<std::vector<double>>& rewards() const { return rewards_; }
  const std::string& first_error() const { return first_error_; }
  int64_t tokens() const { return tokens_; }

 private:
  const std::vector<PromptRecord>& prompts_;
  const TextCodec& codec_;
  RewardProcess& reward_process_;
  std::vector<std::vector<double>> rewards_;
  std::string first_error_;
  int64_t tokens_ = 0;
  Stopwatch since_log_;
};

std::string stats_json(const EvalFlags& flags, const EvalStats& stats, int64_t tokens) {
  OrderedJson pass = OrderedJson::object();
  for (const auto& [k, value] : stats.pass) pass[std::to_string(k)] = value;
  const OrderedJson root = {{"model", flags.sampling.model.model.string()},
                            {"data", flags.data.string()},
                            {"reward", flags.reward.type},
                            {"prompts", stats.prompts},
                            {"samples_per_prompt", flags.sampling.samples},
                            {"temperature", flags.sampling.sampling.temperature},
                            {"max_new_tokens", flags.sampling.max_new_tokens},
                            {"seed", flags.sampling.seed},
                            {"scored", stats.scored},
                            {"unscored", stats.unscored},
                            {"generated_tokens", tokens},
                            {"avg", stats.average},
                            {"avg_standard_error", stats.standard_error},
                            {"pass", pass}};
  return root.dump();
}

void print_stats(const EvalFlags& flags, const EvalStats& stats) {
  fmt::print("{} on {}: {} prompts, {} samples each at temperature {}, reward {}\n",
             flags.sampling.model.model.string(), flags.data.string(), stats.prompts,
             flags.sampling.samples, flags.sampling.sampling.temperature, flags.reward.type);
  fmt::print("  {:<10}{:.4f} +- {:.4f}\n", fmt::format("avg@{}", flags.sampling.samples),
             stats.average, stats.standard_error);
  for (const auto& [k, value] : stats.pass) {
    fmt::print("  {:<10}{:.4f}\n", fmt::format("pass@{}", k), value);
  }
}

void run_eval(const EvalFlags& flags) {
  check_sampling_flags(flags.sampling);
  const auto prompts = read_prompts(flags.data, flags.prompt_key, flags.label_key);
  const auto rewards = start_rewards(flags.reward);
  const TextCodec codec(flags.sampling.model.model, flags.sampling.tokenizer);
  const PromptEncoder& encoder = codec.encoder();
  const auto model = load_model(flags.sampling.model);
  OfflineGenerator generator(*model, codec, flags.sampling);
  Marks marks(prompts, codec, *rewards);
  size_t next = 0;
  while (next < prompts.size() || generator.has_work()) {
    for (; next < prompts.size() && generator.has_room(); ++next) {
      generator.submit(encoder.encode(prompts[next].content),
                       fmt::format("{} prompt {}", flags.data.string(), next + 1));
    }
    generator.step();
    while (const auto samples = generator.take_next()) marks.add(*samples);
  }
  generator.finish();
  const EvalStats stats = summarize_rewards(marks.rewards(), flags.sampling.samples);
  if (flags.json) {
    fmt::print("{}\n", stats_json(flags, stats, marks.tokens()));
  } else {
    print_stats(flags, stats);
  }
  if (stats.unscored > 0) {
    fail(ErrorCode::kFailedPrecondition,
         "{} of {} samples could not be scored and are left out; the first is of {}",
         stats.unscored, stats.scored + stats.unscored, marks.first_error());
  }
}

}  // namespace

void add_eval_command(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("eval", "avg@K and pass@k of a model on a data set with labels");
  auto flags = std::make_shared<EvalFlags>();  // shared: parse and work are two callbacks
  add_sampling_flags(*command, flags->sampling);
  command->add_option("--data", flags->data, "JSON lines of prompts and labels")->required();
  command
      ->add_option("--prompt-key", flags->prompt_key, "field: a string, or a list of chat messages")
      ->capture_default_str();
  command->add_option("--label-key", flags->label_key, "field: what the reward compares with")
      ->capture_default_str();
  add_reward_flags(*command, "--reward", flags->reward);
  command->add_flag("--json", flags->json, "print one JSON object");
  command->footer(
      "avg@K is the mean reward of K samples a prompt, +- its standard error over prompts; pass@k "
      "the\nchance that one of k samples has a reward of 1 (unbiased, from all K).\n"
      "Example:\n  nibble eval --model models/Qwen3-0.6B-int4 --data test.jsonl --reward "
      "last_number \\\n      --samples 8 --temperature 1 --max-new-tokens 256");
  command->callback([flags, &context] {
    context.run = [flags] { run_on_ranks(flags->sampling.model, [&] { run_eval(*flags); }); };
  });
}

}  // namespace nibble
