#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <bit>

#include "cli/log_prob_path.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/ops/cpu_backend.h"

namespace nibble {

int64_t padded_positions(const ModelConfig& config, int64_t tokens) {
  const auto rounded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(tokens)));
  return std::min(std::max<int64_t>(rounded, 256), config.max_position);
}

namespace {

// The whole sequence, its last token too (which pack_sequence leaves out), as its routes are
// wanted.
PackedBatch pack_whole(std::span<const int32_t> ids) {
  const SequenceGroup group{{ids.begin(), ids.end()}, {}};
  PackedBatch batch = pack_groups(std::span(&group, 1));
  for (size_t i = 1; i < ids.size(); ++i) {
    batch.target_row.push_back(static_cast<int64_t>(i) - 1);
    batch.target.push_back(ids[i]);
  }
  return batch;
}

template <typename T>
std::vector<T> values_of(const at::Tensor& tensor) {
  const at::Tensor on_host = tensor.cpu();
  const T* values = on_host.const_data_ptr<T>();
  return {values, values + on_host.numel()};
}

class TrainerPath final : public LogProbPath {
 public:
  TrainerPath(LoadedModel& model, const LogProbOptions& options)
      : model_(model),
        spec_(model.spec),
        backend_(model.gpu ? *model.gpu : ops::cpu_backend()),
        options_(options) {}

  ScoredSequence score(std::span<const int32_t> ids) override {
    const at::NoGradGuard no_grad;
    const auto tokens = static_cast<int64_t>(ids.size());
    if (!rope_ || rope_->num_positions < tokens) {
      rope_ = backend_.place(make_rope_table(spec_.config.rope, spec_.config.head_dim,
                                             padded_positions(spec_.config, tokens)));
    }
    const PackedBatch batch = options_.wants_routes ? pack_whole(ids) : pack_sequence(ids);
    const TapeResult result = run_log_probs(spec_, *model_.weights, rope_, {batch, {}, &backend_},
                                            options_.temperature, options_.activations);
    ScoredSequence scored;
    scored.log_prob = values_of<float>(result.log_prob);
    if (!options_.wants_routes) return scored;
    for (const at::Tensor& route : result.routes) {
      scored.routes.push_back(values_of<int32_t>(route));
    }
    return scored;
  }

 private:
  LoadedModel& model_;
  const ModelSpec& spec_;
  const ops::Backend& backend_;
  const LogProbOptions options_;
  std::shared_ptr<const kernels::RopeTable> rope_;
};

}  // namespace

std::unique_ptr<LogProbPath> make_trainer_path(LoadedModel& model, const LogProbOptions& options) {
  return std::make_unique<TrainerPath>(model, options);
}

}  // namespace nibble
