#pragma once

#include <memory>
#include <vector>

#include "rollout/reward/scorer.h"

namespace nibble {

/// The sum of weight x score over several scorers. A sample that one of them cannot score has no
/// score: the first error is its outcome.
class WeightedScorer final : public Scorer {
 public:
  struct Part {
    std::unique_ptr<Scorer> scorer;
    double weight = 1.0;
  };

  explicit WeightedScorer(std::vector<Part> parts) : parts_(std::move(parts)) {}
  double score(std::string_view response, const Json& label) const override;
  size_t max_batch() const override;
  std::vector<RewardOutcome> score_all(std::span<const ScoredText> samples) const override;

 private:
  const std::vector<Part> parts_;
};

}  // namespace nibble
