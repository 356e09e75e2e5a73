#include "rollout/engine/head_trainer.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/fail.h"
#include "core/base/splitmix64.h"
#include "core/kernels/adamw.h"
#include "core/models/packing.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/ops/torch_parallel.h"
#include "core/quant/bf16.h"
#include "rollout/engine/head_weights.h"

namespace nibble {

// The head's weights with gradients, the model's without.
class HeadTrainer::Source final : public ops::WeightSource {
 public:
  Source(const ModelSpec& head, const ModelSpec& model, const ResidentWeights& weights)
      : head_(head),
        model_embedding_(model.table.embedding),
        model_lm_head_(model.table.lm_head),
        own_(weights.parameters().begin(), weights.parameters().end()) {
    for (int64_t p = 0; p < head.table.size(); ++p) {
      const bool is_own = !is_of_model(head.table, p);
      grads_.emplace_back(is_own ? static_cast<size_t>(head.table.at(p).num_elements()) : 0);
    }
  }

  void enter_layer(int64_t, ops::Pass) override {}
  void leave_layer(int64_t, ops::Pass) override {}
  kernels::WeightView weight(int64_t parameter) const override {
    if (parameter == head_.table.embedding) return of_model_->weight(model_embedding_);
    if (parameter == head_.table.lm_head) return of_model_->weight(model_lm_head_);
    return own_[static_cast<size_t>(parameter)].view(head_.table.at(parameter), {}, false);
  }
  float* grad(int64_t parameter) override {
    std::vector<float>& grad = grads_[static_cast<size_t>(parameter)];
    return grad.empty() ? nullptr : grad.data();
  }

  void begin_pass(const ops::WeightSource& of_model) {
    of_model_ = &of_model;
    for (std::vector<float>& grad : grads_) std::fill(grad.begin(), grad.end(), 0.0f);
  }
  void end_pass() { of_model_ = nullptr; }
  std::vector<StoredParameter>& own() { return own_; }
  const std::vector<float>& gradient(size_t parameter) const { return grads_[parameter]; }

 private:
  const ModelSpec& head_;
  const int64_t model_embedding_, model_lm_head_;
  std::vector<StoredParameter> own_;
  std::vector<std::vector<float>> grads_;        // empty where the model's
  const ops::WeightSource* of_model_ = nullptr;  // during a pass
};

HeadTrainer::HeadTrainer(const ModelSpec& head, const ModelSpec& model,
                         const ResidentWeights& weights, Options options)
    : head_(head),
      options_(options),
      source_(std::make_unique<Source>(head, model, weights)),
      random_(options.seed) {
  NIBBLE_CHECK(options.batch_inputs >= 1, "a batch of {} inputs", options.batch_inputs);
  for (const StoredParameter& stored : source_->own()) {
    std::vector<float>& master = master_.emplace_back();
    for (const uint16_t bits : stored.bf16) master.push_back(quant::bf16_to_float(bits));
    m_.emplace_back(master.size());
    v_.emplace_back(master.size());
  }
}

HeadTrainer::~HeadTrainer() = default;

std::optional<double> HeadTrainer::step(const ops::WeightSource& of_model,
                                        const HeadExamples& examples) {
  const std::vector<const HeadExample*> batch = choose(examples);
  if (batch.empty()) return std::nullopt;
  source_->begin_pass(of_model);
  const double loss = backward(batch);
  source_->end_pass();
  update();
  return loss;
}

// With repetition: the next batch does not depend on what was in the last.
std::vector<const HeadExample*> HeadTrainer::choose(const HeadExamples& examples) {
  std::vector<const HeadExample*> batch;
  if (examples.all().empty()) return batch;
  int64_t inputs = 0;
  while (true) {
    const HeadExample& example = examples.all()[splitmix64(random_) % examples.all().size()];
    inputs += example.num_inputs();
    if (inputs > options_.batch_inputs && !batch.empty()) return batch;
    batch.push_back(&example);
  }
}

double HeadTrainer::backward(const std::vector<const HeadExample*>& batch) {
  std::vector<SequenceGroup> groups;
  std::vector<float> states;
  int64_t longest = 0;
  for (const HeadExample* example : batch) {
    groups.push_back(
        {{example->tokens[0]}, {{example->tokens.begin() + 1, example->tokens.end()}}});
    states.insert(states.end(), example->states.begin(), example->states.end());
    longest = std::max(longest, example->num_inputs());
  }
  if (rope_ == nullptr || rope_->num_positions < longest) {
    rope_ = make_rope_table(head_.config.rope, head_.config.head_dim, longest);
  }
  const PackedBatch packed = pack_groups(groups);
  const int64_t width = head_.config.hidden;
  TapeInputs inputs{packed};
  inputs.wants_routes = false;
  inputs.joined = at::from_blob(states.data(), {std::ssize(states) / width, width});
  const TapeResult result =
      run_log_probs(head_, *source_, rope_, inputs, 1.0f, ActivationType::kFloat32);
  const at::Tensor loss = -result.log_prob.mean();
  const double value = loss.item<double>();
  if (!std::isfinite(value)) {
    fail(ErrorCode::kFailedPrecondition, "the draft head's loss is {} after {} steps", value,
         num_steps_);
  }
  loss.backward();
  return value;
}

void HeadTrainer::update() {
  const kernels::Parallel& parallel = ops::torch_parallel();
  double squares = 0.0;
  for (size_t p = 0; p < master_.size(); ++p) {
    squares +=
        kernels::sum_of_squares(source_->gradient(p).data(), std::ssize(master_[p]), parallel);
  }
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) {
    fail(ErrorCode::kFailedPrecondition, "the draft head's gradient has norm {} after {} steps",
         norm, num_steps_);
  }
  kernels::AdamwParams params;
  params.lr = options_.lr;
  params.weight_decay = 0.0f;
  params.step = ++num_steps_;
  params.grad_scale =
      static_cast<float>(std::min(1.0, options_.max_grad_norm / std::max(norm, 1e-12)));
  for (size_t p = 0; p < master_.size(); ++p) {
    std::vector<float>& master = master_[p];
    if (master.empty()) continue;
    kernels::adamw(master.data(), m_[p].data(), v_[p].data(), source_->gradient(p).data(),
                   std::ssize(master), params, parallel);
    Array<uint16_t>& stored = source_->own()[p].bf16;
    for (size_t i = 0; i < master.size(); ++i) stored[i] = quant::float_to_bf16(master[i]);
  }
}

std::unique_ptr<ResidentWeights> HeadTrainer::weights() const {
  return own_head_weights(head_.table, source_->own());
}

int64_t HeadTrainer::num_bytes() const {
  int64_t count = 0;
  for (const std::vector<float>& master : master_) count += std::ssize(master);
  return count * (4 * 4 + 2);
}

}  // namespace nibble
