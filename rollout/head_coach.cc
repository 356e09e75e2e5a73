#include "rollout/head_coach.h"

#include <algorithm>
#include <utility>

namespace nibble {

HeadCoach::HeadCoach(std::shared_ptr<const DraftHead> head, const ModelSpec& model, Options options)
    : head_(std::move(head)),
      options_(options),
      examples_(model.config.hidden, options.max_inputs, options.example_inputs),
      trainer_(head_->spec, model, *head_->weights, options.training) {}

void HeadCoach::after_step(Engine& engine, const ops::WeightSource& of_model) {
  if (examples_.num_added() - num_used_ < options_.every_inputs) return;
  // Pieces of samples come many at a time, one step of training is done at a time: the others
  // follow, as far as what they are for is still held.
  num_used_ =
      std::max(num_used_ + options_.every_inputs, examples_.num_added() - examples_.max_inputs());
  const auto loss = trainer_.step(of_model, examples_);
  if (!loss) return;
  loss_ = *loss;
  engine.set_draft_weights(trainer_.weights(), ++version_);
}

void HeadCoach::save(const std::filesystem::path& directory) const {
  save_draft_head(directory, head_->spec, *trainer_.weights());
}

}  // namespace nibble
