#include "rollout/engine/weight_shapes.h"

#include "core/base/fail.h"

namespace nibble {

void check_weight_shapes(const ModelSpec& spec, const ops::WeightSource& weights,
                         const std::string& what, const Mesh& mesh) {
  for (int64_t p = 0; p < spec.table.size(); ++p) {
    const ParameterSpec& parameter = spec.table.at(p);
    const kernels::WeightView view = weights.weight(p);
    const int64_t rows = used_rows(spec.table, p, mesh, 0).rows();
    if (view.rows == rows && view.cols == parameter.cols) continue;
    fail(ErrorCode::kInvalidArgument, "{}: tensor '{}' is [{}, {}], want [{}, {}]", what,
         parameter.name(), view.rows, view.cols, rows, parameter.cols);
  }
}

}  // namespace nibble
