#include "coordinator/rollout.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <tuple>

namespace nibble {

void Rollout::add(GroupResult group) {
  (group.num_scored() > 0 ? groups : unscored).push_back(std::move(group.source));
  std::move(group.samples.begin(), group.samples.end(), std::back_inserter(samples));
}

void Rollout::sort() {
  std::sort(samples.begin(), samples.end(), [](const auto& a, const auto& b) {
    return std::pair(a.prompt_id, a.sample_index) < std::pair(b.prompt_id, b.sample_index);
  });
  std::sort(groups.begin(), groups.end(),
            [](const auto& a, const auto& b) { return a.prompt_id < b.prompt_id; });
}

int64_t Rollout::generated_tokens() const {
  int64_t tokens = 0;
  for (const SampleResult& sample : samples) tokens += sample.response_tokens;
  return tokens;
}

double Rollout::reward_mean() const {
  double sum = 0.0;
  int64_t count = 0;
  for (const SampleResult& sample : samples) {
    if (!sample.error.empty()) continue;
    sum += sample.reward;
    ++count;
  }
  return count > 0 ? sum / static_cast<double>(count) : 0.0;
}

void Rollout::add_figures(MetricsRow& row) const {
  double sum = 0.0, squares = 0.0, length = 0.0, truncated = 0.0, failed = 0.0;
  double lowest = INFINITY, highest = -INFINITY;
  for (const SampleResult& sample : samples) {
    length += static_cast<double>(sample.response_tokens);
    truncated += sample.finish_reason == "length" ? 1.0 : 0.0;
    if (!sample.error.empty()) {
      failed += 1.0;
      continue;
    }
    sum += sample.reward;
    squares += sample.reward * sample.reward;
    lowest = std::min(lowest, sample.reward);
    highest = std::max(highest, sample.reward);
  }
  const auto all = static_cast<double>(samples.size());
  const double scored = std::max(1.0, all - failed);
  const double mean = sum / scored;
  row.set("reward_mean", mean);
  row.set("reward_std", std::sqrt(std::max(0.0, squares / scored - mean * mean)));
  row.set("reward_min", lowest);
  row.set("reward_max", highest);
  row.set("response_tokens_mean", length / all);
  row.set("truncated_share", truncated / all);
  row.set("samples_dropped", failed);
  int64_t zero_std = 0;
  for (size_t i = 0; i < samples.size();) {
    size_t end = i;
    bool differs = false;
    while (end < samples.size() && samples[end].prompt_id == samples[i].prompt_id) {
      differs = differs || samples[end].reward != samples[i].reward;
      ++end;
    }
    zero_std += differs ? 0 : 1;
    i = end;
  }
  row.set("zero_std_groups", static_cast<double>(zero_std));
  row.set("filtered_groups", static_cast<double>(filtered_groups));
  row.set("stale_groups", static_cast<double>(stale_groups));
  row.set("dropped_groups", static_cast<double>(dropped_groups));
  row.set("carried_groups", static_cast<double>(carried_groups));
  row.set("staleness_mean", staleness_mean);
  row.set("staleness_max", static_cast<double>(staleness_max));
  row.set("generated_tokens", static_cast<double>(generated_tokens()));
  row.set("guessed_tokens", static_cast<double>(engines.guessed_tokens));
  row.set("accepted_tokens", static_cast<double>(engines.accepted_tokens));
  row.set("cached_prompt_tokens", static_cast<double>(engines.cached_prompt_tokens));
  row.set("preemptions", static_cast<double>(engines.preemptions));
  row.set("draft_ms", engines.draft_ms);
  row.set("generate_ms", engines.generate_ms);
  row.set("reward_ms", engines.reward_ms);
  row.set("rollout_wait_ms", wait_ms);
}

bool has_spread(const GroupResult& group) {
  const SampleResult* first = nullptr;
  for (const SampleResult& sample : group.samples) {
    if (!sample.error.empty()) continue;
    if (first != nullptr && sample.reward != first->reward) return true;
    if (first == nullptr) first = &sample;
  }
  return false;
}

}  // namespace nibble
