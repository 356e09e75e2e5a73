#include "rollout/group_scorer.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

constexpr size_t kMaxReportText = 4096;

std::string capped(std::string text) {
  if (text.size() <= kMaxReportText) return text;
  size_t end = kMaxReportText;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  text.resize(end);
  return text;
}

// What the engine recorded for one sample: the prompt's tokens first.
void take_routes(const Routes& routes, size_t prompt_tokens, SampleReport& report) {
  report.route_shape = {routes.layers, routes.top_k, routes.bytes_per_expert};
  const auto split = routes.bytes.begin() + static_cast<std::ptrdiff_t>(prompt_tokens) *
                                                report.route_shape.bytes_per_token();
  report.prompt_routes.assign(routes.bytes.begin(), split);
  report.sample.routes.assign(split, routes.bytes.end());
}

SampleReport make_report(const DrawnGroup& group, size_t index, Completion done, std::string text) {
  SampleReport report;
  report.prompt_id = group.prompt_id;
  report.sample.sample_index = static_cast<uint32_t>(index);
  report.sample.finish_reason = finish_reason_name(done.reason);
  report.response_text = capped(std::move(text));
  if (done.reason == FinishReason::kAborted) report.error = "a swap of weights ended it";
  report.sample.response = std::move(done.tokens);
  report.sample.log_probs = std::move(done.log_probs);
  report.sample.versions = std::move(done.versions);
  if (!done.routes.bytes.empty()) take_routes(done.routes, group.prompt.size(), report);
  return report;
}

// Tokens that a pass over the group computes: the prompt once, and of a sample all but the last.
int64_t computed_tokens(const DrawnGroup& group, const std::vector<SampleReport>& samples) {
  auto tokens = static_cast<int64_t>(group.prompt.size());
  for (const SampleReport& report : samples) {
    if (report.error) continue;
    tokens += std::max<int64_t>(0, static_cast<int64_t>(report.sample.response.size()) - 1);
  }
  return tokens;
}

}  // namespace

GroupScorer::GroupScorer(const RewardConfig& config, std::vector<std::string> command,
                         const Tokenizer& tokenizer)
    : tokenizer_(tokenizer) {
  RewardProcessOptions reward;
  reward.command = std::move(command);
  reward.sample_timeout = std::chrono::milliseconds(config.timeout_ms);
  reward.limits.max_memory_bytes = config.memory_mb << 20;
  thread_.run([&] { rewards_ = std::make_unique<RewardProcess>(std::move(reward)); });
}

GroupScorer::~GroupScorer() {
  thread_.run([&] { rewards_.reset(); });
}

std::vector<GroupReport> GroupScorer::score(std::vector<DrawnGroup> groups) {
  std::vector<GroupReport> reports;
  std::vector<RewardSample> batch;
  for (DrawnGroup& group : groups) {
    GroupReport report{group.prompt_id, group.attempt, group.evaluation, 0, {}};
    for (size_t i = 0; i < group.samples.size(); ++i) {
      Completion& done = group.samples[i];
      std::string text = tokenizer_.decode(done.tokens, {.skip_special = true});
      batch.push_back({text, group.label});
      report.samples.push_back(make_report(group, i, std::move(done), std::move(text)));
    }
    report.samples[0].prompt_text = capped(tokenizer_.decode(group.prompt));
    reports.push_back(std::move(report));
  }
  const auto rewards = thread_.run([&] { return rewards_->score(batch); });
  auto reward = rewards.begin();
  for (size_t g = 0; g < groups.size(); ++g) {
    for (SampleReport& report : reports[g].samples) {
      if (const auto* error = std::get_if<Error>(&*reward)) {
        report.error = error->what();
      } else if (!report.error) {
        report.sample.reward = std::get<double>(*reward);
      }
      ++reward;
    }
    if (!groups[g].evaluation) {
      reports[g].computed_tokens = computed_tokens(groups[g], reports[g].samples);
    }
  }
  return reports;
}

}  // namespace nibble
