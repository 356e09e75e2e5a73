#include "rollout/engine/weight_shapes.h"

#include "core/base/fail.h"

namespace nibble {

void check_weight_shapes(const ModelSpec& spec, const ops::WeightSource& weights,
                         const std::string& what) {
  for (int64_t p = 0; p < spec.table.size(); ++p) {
    const ParameterSpec& parameter = spec.table.at(p);
    const kernels::WeightView view = weights.weight(p);
    if (view.rows == parameter.rows && view.cols == parameter.cols) continue;
    fail(ErrorCode::kInvalidArgument, "{}: tensor '{}' is [{}, {}], want [{}, {}]", what,
         parameter.name(), view.rows, view.cols, parameter.rows, parameter.cols);
  }
}

}  // namespace nibble
