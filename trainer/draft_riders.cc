#include "trainer/draft_riders.h"

#include "core/base/context.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {

std::vector<StoredParameter> load_draft_riders(const DraftPart& draft, int rank, DeviceKind device,
                                               const kernels::Parallel& parallel) {
  const ParameterTable table = model_parameters(draft.config);
  std::vector<StoredParameter> riders(static_cast<size_t>(table.size()));
  if (rank != 0) return riders;
  with_context("rollout.draft_model", [&] {
    const HfDirectory directory(draft.directory);
    const QuantizationPlan stored = checkpoint_plan(directory, table);
    const bool is_as_stored = stored.any() && stored.config.bits == draft.plan.config.bits;
    const auto weights = is_as_stored
                             ? load_weights(directory, table)
                             : load_weights_quantized(directory, table, draft.plan, parallel);
    for (int64_t p = 0; p < table.size(); ++p) {
      StoredParameter& own = weights->stored(p);
      riders[static_cast<size_t>(p)] = device == DeviceKind::kCpu ? std::move(own) : own.to(device);
    }
  });
  return riders;
}

}  // namespace nibble
