#include "cli/checkpoint_summary.h"
#include "core/base/fail.h"
#include "core/checkpoint/checkpoint_list.h"
#include "trainer/state/train_checkpoint.h"

namespace nibble {

CheckpointSummary summarize_train_checkpoint(const std::filesystem::path& path) {
  const CheckpointReader reader(path);
  const CheckpointDigest digest = digest_checkpoint(path);
  CheckpointSummary summary;
  summary.path = path;
  summary.format = "training";
  summary.model = reader.spec().config;
  if (reader.serve_plan().any()) summary.quantization = reader.serve_plan().config;
  count_parameters(summary, reader.spec().table, reader.serve_plan());
  for (const SafetensorsFile& file : reader.rows().files()) count_tensors(summary, file.tensors());
  summary.weights_sha256 = digest.weights_sha256;
  summary.state_sha256 = digest.state_sha256;
  summary.weight_version = digest.progress.weight_version;
  summary.step = digest.progress.step;
  return summary;
}

void refuse_run_directory(const std::filesystem::path& path) {
  const auto checkpoints = list_checkpoints(path / "checkpoints");
  if (checkpoints.empty()) return;
  fail(ErrorCode::kInvalidArgument,
       "'{}' is a run directory, not a checkpoint; its newest checkpoint is '{}'", path.string(),
       checkpoints.back().path.string());
}

}  // namespace nibble
