#include "rollout/reward/scorer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "core/base/fail.h"
#include "rollout/reward/dapo.h"
#include "rollout/reward/gym_score.h"
#include "rollout/reward/instructions/instruction_score.h"
#include "rollout/reward/last_number.h"
#include "rollout/reward/math/math_answer.h"
#include "rollout/reward/miles/miles_math.h"
#include "rollout/reward/multiple_choice.h"
#include "rollout/reward/remote_scorer.h"
#include "rollout/reward/text/boxed.h"
#include "rollout/reward/text/label_text.h"
#include "rollout/reward/text/text.h"
#include "rollout/reward/token_f1.h"
#include "rollout/reward/weighted_scorer.h"

namespace nibble {
namespace {

constexpr std::string_view kBoxedPrefix = "boxed_";

using Rule = double (*)(std::string_view response, const Json& label);

double score_last_number(std::string_view response, const Json& label) {
  const std::string text = label_text(label);
  const auto expected = find_last_number(text);
  if (!expected) fail(ErrorCode::kInvalidArgument, "the label '{}' holds no number", text);
  return find_last_number(response) == expected ? 1 : 0;
}

double score_exact(std::string_view response, const Json& label) {
  return trim(response) == trim(label_text(label)) ? 1 : 0;
}

double score_gym(std::string_view response, const Json& label) {
  return gym_score(label, extract_gym_answer(response));
}

double score_math(std::string_view response, const Json& label) {
  return math::is_right_answer(response, label_text(label)) ? 1 : 0;
}

double score_miles(std::string_view response, const Json& label) {
  return miles::is_right_boxed_answer(response, label_text(label)) ? 1 : 0;
}

double score_deepscaler(std::string_view response, const Json& label) {
  return score_miles(miles::behind_thinking(response), label);
}

double score_dapo(std::string_view response, const Json& label) {
  return dapo_score(response, label_text(label));
}

struct NamedRule {
  std::string_view name;
  Rule rule;
};

constexpr std::array<NamedRule, 10> kRules = {{{"last_number", score_last_number},
                                               {"exact", score_exact},
                                               {"reasoning_gym", score_gym},
                                               {"math", score_math},
                                               {"math_miles", score_miles},
                                               {"deepscaler", score_deepscaler},
                                               {"dapo", score_dapo},
                                               {"gpqa", multiple_choice_score},
                                               {"f1", token_f1},
                                               {"ifbench", instruction_score}}};

class RuleScorer final : public Scorer {
 public:
  RuleScorer(Rule rule, bool is_boxed) : rule_(rule), is_boxed_(is_boxed) {}

  double score(std::string_view response, const Json& label) const override {
    if (response.size() > kMaxResponseBytes) {
      fail(ErrorCode::kInvalidArgument, "the response has {} bytes; at most {} are scored",
           response.size(), kMaxResponseBytes);
    }
    return rule_(is_boxed_ ? last_boxed(response).value_or("") : response, label);
  }

 private:
  const Rule rule_;
  const bool is_boxed_;
};

void check_parts(const RewardSpec& spec) {
  constexpr size_t kMaxParts = 16;
  if (spec.parts.empty() || spec.parts.size() > kMaxParts) {
    fail(ErrorCode::kInvalidArgument, "there are {} rewards; there must be from 1 to {}",
         spec.parts.size(), kMaxParts);
  }
  std::set<std::string> types;
  for (const RewardPart& part : spec.parts) {
    if (!std::isfinite(part.weight)) {
      fail(ErrorCode::kInvalidArgument, "the weight of reward '{}' is {}", part.type, part.weight);
    }
    if (!types.insert(part.type).second) {
      fail(ErrorCode::kInvalidArgument, "reward '{}' is there twice", part.type);
    }
  }
  if (!spec.url.empty() && !has_remote(spec.parts)) {
    fail(ErrorCode::kInvalidArgument,
         "the URL {} is for rewards of type remote, of which there "
         "are none",
         spec.url);
  }
}

}  // namespace

std::vector<RewardOutcome> Scorer::score_all(std::span<const ScoredText> samples) const {
  std::vector<RewardOutcome> outcomes;
  for (const ScoredText& sample : samples) {
    try {
      const double value = score(sample.response, *sample.label);
      NIBBLE_CHECK(std::isfinite(value), "a scorer returned {}", value);
      outcomes.emplace_back(value);
    } catch (const Error& error) {
      outcomes.emplace_back(error);  // of this one sample: goes to who asked
    }
  }
  return outcomes;
}

std::unique_ptr<Scorer> make_scorer(const std::string& type) {
  const bool is_boxed = type.starts_with(kBoxedPrefix);
  const std::string name = is_boxed ? type.substr(kBoxedPrefix.size()) : type;
  for (const NamedRule& known : kRules) {
    if (known.name == name) return std::make_unique<RuleScorer>(known.rule, is_boxed);
  }
  if (name == kRemoteReward) {
    fail(ErrorCode::kInvalidArgument, "reward type '{}' {}", type,
         is_boxed ? "is unknown: remote takes no boxed_" : "wants a URL");
  }
  fail(ErrorCode::kInvalidArgument, "reward type '{}' is unknown; known are {}", type,
       known_reward_types());
}

std::unique_ptr<Scorer> make_scorer(const RewardSpec& spec) {
  check_parts(spec);
  std::vector<WeightedScorer::Part> parts;
  for (const RewardPart& part : spec.parts) {
    std::unique_ptr<Scorer> scorer = part.type == kRemoteReward
                                         ? std::make_unique<RemoteScorer>(remote_options(spec))
                                         : make_scorer(part.type);
    if (spec.parts.size() == 1 && part.weight == 1.0) return scorer;
    parts.push_back({std::move(scorer), part.weight});
  }
  return std::make_unique<WeightedScorer>(std::move(parts));
}

std::string known_reward_types() {
  std::string names;
  for (const NamedRule& known : kRules) names += std::string(known.name) + ", ";
  return names + "remote, or boxed_ before one of the others";
}

}  // namespace nibble
