// What ArenaExecutor adds to a product that has an adapter beside its matrix.
#include "core/kernels/activation.h"
#include "core/kernels/linear.h"
#include "core/models/arena_executor.h"

namespace nibble {

// y += (scale * (x A^T)) B^T, every result rounded; nothing where there is no adapter. Its memory
// is free again afterwards.
void ArenaExecutor::add_adapter(Value x, int64_t parameter, Value y) {
  const AdapterParameters adapter = spec_.table.adapter_of(parameter);
  if (!adapter.exists()) return;
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t used = used_;
  const size_t count = allocations_.size();
  const auto product = [&](const float* of, int64_t p) {
    const kernels::WeightView w = weights_->weight(p);
    float* out = allocate(w.rows, tokens);
    kernels::linear(of, w, tokens, out, w.rows, parallel_);
    return rounded(out, tokens * w.rows);
  };
  const int64_t rank = spec_.config.lora->rank;
  float* low = product(x, adapter.a);
  if (const float scale = spec_.config.lora->scale(); scale != 1.0f) {
    for (int64_t i = 0; i < tokens * rank; ++i) low[i] *= scale;
    rounded(low, tokens * rank);
  }
  const float* added = product(low, adapter.b);
  const int64_t values = tokens * width_of(added);
  kernels::add(y, added, values, parallel_);
  rounded(y, values);
  used_ = used;
  allocations_.resize(count);
}

}  // namespace nibble
