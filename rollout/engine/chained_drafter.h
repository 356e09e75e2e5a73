#pragma once

#include <memory>
#include <vector>

#include "rollout/engine/drafter.h"

namespace nibble {

/// Asks one drafter, then a model where the first has nothing, or nothing as likely to come true as
/// the model's guesses usually do. One thread.
class ChainedDrafter final : public Drafter {
 public:
  ChainedDrafter(std::unique_ptr<Drafter> first, std::unique_ptr<Drafter> model)
      : first_(std::move(first)), model_(std::move(model)) {}

  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn) override;
  void extend(uint64_t id, int32_t token) override;
  void end(uint64_t id, bool is_whole) override;
  void propose(const DraftRound& round, DraftPolicy& policy) override;
  void ask(StepPlan& plan) override { model_->ask(plan); }
  void observe(const StepPlan& plan) override { model_->observe(plan); }
  int64_t num_bytes() const override { return first_->num_bytes() + model_->num_bytes(); }

 private:
  const std::unique_ptr<Drafter> first_;
  const std::unique_ptr<Drafter> model_;
  std::vector<std::vector<DraftToken>> doubtful_;  // the first one's, by query
};

}  // namespace nibble
