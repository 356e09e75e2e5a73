#include "convert/layer_statistics.h"

#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>

#include <utility>

namespace nibble {

LayerStatistics::LayerStatistics(const ModelSpec& spec, const QuantizationPlan& plan, int64_t layer,
                                 const ops::Backend& backend)
    : backend_(backend) {
  const LayerParameters& p = spec.table.layers[static_cast<size_t>(layer)];
  const auto share = [&](const std::vector<int64_t>& parameters) {
    SharedInput input;
    for (const int64_t parameter : parameters) {
      if (parameter >= 0 && plan.quantized[static_cast<size_t>(parameter)]) {
        input.parameters.push_back(parameter);
      }
    }
    if (input.parameters.empty()) return;
    const int64_t cols = spec.table.at(input.parameters[0]).cols;
    input.gram = at::zeros({cols, cols}, backend.options().dtype(at::kFloat));
    for (const int64_t parameter : input.parameters) index_[parameter] = inputs_.size();
    inputs_.push_back(std::move(input));
  };
  share({p.q, p.k, p.v});
  share({p.o});
  share({p.gate, p.up});
  share({p.down});
  if (p.first_expert < 0) return;
  std::vector<int64_t> first_matrices;
  for (int64_t e = 0; e < spec.table.num_experts; ++e) {
    first_matrices.push_back(p.first_expert + 3 * e);
    first_matrices.push_back(p.first_expert + 3 * e + 1);
  }
  share(first_matrices);
  for (int64_t e = 0; e < spec.table.num_experts; ++e) share({p.first_expert + 3 * e + 2});
}

void LayerStatistics::add(int64_t parameter, const at::Tensor& x) {
  const auto found = index_.find(parameter);
  if (found == index_.end()) return;
  SharedInput& input = inputs_[found->second];
  if (input.parameters.front() == parameter) backend_.add_gram(x, input.gram);
}

std::vector<SharedInput> LayerStatistics::take() {
  for (SharedInput& input : inputs_) {
    input.gram = at::triu(input.gram).add_(at::triu(input.gram, 1).t());
  }
  index_.clear();
  return std::exchange(inputs_, {});
}

StatisticsExecutor::StatisticsExecutor(const ModelSpec& spec, ops::WeightSource& source,
                                       std::shared_ptr<const kernels::RopeTable> rope,
                                       const TapeInputs& inputs, LayerStatistics& statistics)
    : TapeExecutor(spec, source, std::move(rope), inputs),
      spec_(spec),
      source_(source),
      backend_(*inputs.backend),
      statistics_(statistics) {}

StatisticsExecutor::Value StatisticsExecutor::linear(const Value& x, int64_t parameter) {
  statistics_.add(parameter, x);
  const auto layer = static_cast<size_t>(spec_.table.at(parameter).layer);
  if (parameter == spec_.table.layers[layer].down) return {};
  return TapeExecutor::linear(x, parameter);
}

StatisticsExecutor::Value StatisticsExecutor::experts(const Value& x, const Routing& /*routing*/,
                                                      int64_t first_expert) {
  for (int64_t e = 0; e < spec_.table.num_experts; ++e) {
    const int64_t gate = first_expert + 3 * e, up = gate + 1, down = gate + 2;
    statistics_.add(gate, x);
    statistics_.add(up, x);
    if (!statistics_.wants(down)) continue;
    statistics_.add(down, backend_.silu_mul(backend_.linear(x, source_.weight(gate)),
                                            backend_.linear(x, source_.weight(up))));
  }
  return {};
}

}  // namespace nibble
