#include "trainer/state/checkpoint_snapshot.h"

#include <exception>
#include <utility>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/comm/reduce.h"
#include "trainer/state/row_files.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// What lies in files is too large for memory: so is its copy.
template <typename T>
std::vector<Array<T>> on_host(const std::vector<Array<T>>& arrays) {
  std::vector<Array<T>> copies;
  copies.reserve(arrays.size());
  for (const Array<T>& array : arrays) {
    const bool is_mapped = array.device() == DeviceKind::kMappedFile;
    copies.push_back(array.to(is_mapped ? DeviceKind::kMappedFile : DeviceKind::kCpu));
  }
  return copies;
}

OptimizerState host_copy(const OptimizerState& state) {
  OptimizerState copy;
  copy.master = on_host(state.master);
  copy.m = on_host(state.m);
  copy.v = on_host(state.v);
  copy.m_bf16 = on_host(state.m_bf16);
  copy.v_bf16 = on_host(state.v_bf16);
  copy.held_scale = on_host(state.held_scale);
  copy.updates = state.updates;
  return copy;
}

fs::path partial_of(const fs::path& directory) { return directory.string() + ".partial"; }

// A barrier that also tells everybody whether all ranks succeeded so far.
bool all_succeeded(ProcessGroup& group, bool mine) {
  double failures = mine ? 0.0 : 1.0;
  all_reduce_sum(group, std::span(&failures, 1));
  return failures == 0.0;
}

}  // namespace

CheckpointSnapshot::CheckpointSnapshot(const StateSource& model, const StateSource* critic,
                                       const TrainProgress& progress, int rank, int world)
    : model_{model.layout, host_copy(model.state), model.config_json},
      critic_(critic == nullptr
                  ? std::optional<StateCopy>()
                  : StateCopy{critic->layout, host_copy(critic->state), critic->config_json}),
      progress_(progress),
      rank_(rank),
      world_(world) {}

void CheckpointSnapshot::begin(const fs::path& directory) const {
  const fs::path partial = partial_of(directory);
  fs::remove_all(partial);
  std::error_code error;
  fs::create_directories(partial, error);
  if (error) {
    fail(ErrorCode::kResourceExhausted, "cannot create '{}': {}", partial.string(),
         error.message());
  }
}

void CheckpointSnapshot::write_rows(const fs::path& directory) const {
  const auto write = [&](RowsOf whose, const StateCopy& copy) {
    write_row_file(partial_of(directory) / row_file_name(whose, rank_, world_), copy.layout,
                   copy.state);
  };
  write(RowsOf::kModel, model_);
  if (critic_) write(RowsOf::kCritic, *critic_);
}

void CheckpointSnapshot::publish(const fs::path& directory) const {
  const fs::path partial = partial_of(directory);
  write_file_atomically(partial / "config.json", model_.config_json);
  OrderedJson meta = {{"format_version", model_.state.holds_scales() ? kHeldCheckpointFormatVersion
                                                                     : kCheckpointFormatVersion},
                      {"step", progress_.step},
                      {"weight_version", progress_.weight_version},
                      {"updates", model_.state.updates},
                      {"world", world_}};
  if (model_.state.holds_scales()) meta["scales"] = "held";
  if (!progress_.recent_grad_norms.empty()) meta["recent_grad_norms"] = progress_.recent_grad_norms;
  if (!progress_.rollout_state.empty()) {
    meta["rollout"] = parse_ordered_json(progress_.rollout_state, "rollout_state");
  }
  if (!progress_.job_config.empty()) meta["job_config"] = progress_.job_config;
  if (critic_) {
    meta["critic"] = {{"updates", critic_->state.updates},
                      {"config", parse_ordered_json(critic_->config_json, "the critic's config")}};
  }
  meta["sha256"] = checkpoint_meta_sha256(meta, model_.config_json);
  write_file_atomically(partial / "meta.json", meta.dump(2) + "\n");
  publish_directory(partial, directory);
}

void CheckpointSnapshot::discard(const fs::path& directory) {
  fs::remove_all(partial_of(directory));
}

void save_train_checkpoint(const fs::path& directory, const CheckpointSnapshot& snapshot,
                           ProcessGroup& group) {
  const bool leads = group.rank() == 0;
  // Every rank reaches every barrier, or one rank's full disk would hang the others.
  const auto run_phase = [&](const char* phase, bool takes_part, const auto& body) {
    std::exception_ptr problem;
    try {
      if (takes_part) body();
    } catch (const Error&) {
      problem = std::current_exception();
    }
    if (all_succeeded(group, problem == nullptr)) return;
    if (leads) CheckpointSnapshot::discard(directory);
    if (problem) std::rethrow_exception(problem);
    fail(ErrorCode::kUnavailable, "another rank could not {} checkpoint '{}'", phase,
         directory.string());
  };
  run_phase("start", leads, [&] { snapshot.begin(directory); });
  run_phase("write", true, [&] { snapshot.write_rows(directory); });
  run_phase("publish", leads, [&] { snapshot.publish(directory); });
}

}  // namespace nibble
