#include "trainer/state/checkpoint_snapshot.h"

#include <exception>
#include <map>
#include <utility>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/comm/reduce.h"
#include "core/kernels/quantize.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

template <typename T>
std::vector<Array<T>> on_host(const std::vector<Array<T>>& arrays) {
  std::vector<Array<T>> copies;
  copies.reserve(arrays.size());
  for (const Array<T>& array : arrays) copies.push_back(array.to(DeviceKind::kCpu));
  return copies;
}

OptimizerState host_copy(const OptimizerState& state) {
  OptimizerState copy;
  copy.master = on_host(state.master);
  copy.m = on_host(state.m);
  copy.v = on_host(state.v);
  copy.held_scale = on_host(state.held_scale);
  copy.updates = state.updates;
  return copy;
}

fs::path partial_of(const fs::path& directory) { return directory.string() + ".partial"; }

// One tensor of a rank's file.
struct StoredRows {
  TensorInfo info;
  std::span<const std::byte> bytes;
  std::string hash_key;
  quant::ContentHash hash;
};

// A barrier that also tells everybody whether all ranks succeeded so far.
bool all_succeeded(ProcessGroup& group, bool mine) {
  double failures = mine ? 0.0 : 1.0;
  all_reduce_sum(group, std::span(&failures, 1));
  return failures == 0.0;
}

}  // namespace

CheckpointSnapshot::CheckpointSnapshot(const ShardLayout& layout, const OptimizerState& state,
                                       const TrainProgress& progress, std::string model_config_json,
                                       int rank, int world)
    : layout_(layout),
      state_(host_copy(state)),
      progress_(progress),
      model_config_json_(std::move(model_config_json)),
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
  const kernels::Serial serial;
  std::vector<StoredRows> stored;
  std::map<std::string, std::string> metadata;
  const std::pair<const char*, const std::vector<Array<float>>&> kinds[] = {
      {"m", state_.m}, {"master", state_.master}, {"v", state_.v}};
  for (const auto& [kind, arrays] : kinds) {
    for (int64_t p = 0; p < layout_.table->size(); ++p) {
      const ParameterSpec& whole = layout_.table->at(p);
      const RowShard shard = layout_.shard(p);
      if (shard.rows() == 0) continue;
      const Array<float>& rows = arrays[static_cast<size_t>(p)];
      metadata["first_row/" + whole.name()] = std::to_string(shard.begin);
      stored.push_back(
          {{fmt::format("{}/{}", kind, whole.name()), DType::kF32, {shard.rows(), whole.cols}},
           std::as_bytes(std::span(rows)),
           checkpoint_hash_key(kind, whole),
           kernels::hash_words(reinterpret_cast<const uint32_t*>(rows.data()), std::ssize(rows),
                               static_cast<uint64_t>(shard.begin * whole.cols), serial)});
    }
  }
  for (size_t p = 0; p < state_.held_scale.size(); ++p) {
    const ParameterSpec& whole = layout_.table->at(static_cast<int64_t>(p));
    const RowShard shard = layout_.shard(static_cast<int64_t>(p));
    const Array<uint16_t>& scale = state_.held_scale[p];
    if (scale.empty()) continue;
    const int64_t groups_per_row = whole.cols / layout_.plan.config.group_size;
    stored.push_back(
        {{"scale/" + whole.name(), DType::kBf16, {shard.rows(), groups_per_row}},
         std::as_bytes(std::span(scale)),
         checkpoint_hash_key("scale", whole),
         kernels::hash_bf16(scale.data(), std::ssize(scale),
                            static_cast<uint64_t>(shard.begin * groups_per_row), serial)});
  }
  std::vector<TensorInfo> infos;
  for (const StoredRows& rows : stored) {
    infos.push_back(rows.info);
    metadata[rows.hash_key] = content_hash_text(rows.hash);
  }
  SafetensorsWriter writer(partial_of(directory) / checkpoint_rank_file(rank_, world_), infos,
                           metadata);
  for (const StoredRows& rows : stored) writer.write(rows.info.name, rows.bytes);
  writer.finish();
}

void CheckpointSnapshot::publish(const fs::path& directory) const {
  const fs::path partial = partial_of(directory);
  write_file_atomically(partial / "config.json", model_config_json_);
  OrderedJson meta = {{"format_version", state_.holds_scales() ? kHeldCheckpointFormatVersion
                                                               : kCheckpointFormatVersion},
                      {"step", progress_.step},
                      {"weight_version", progress_.weight_version},
                      {"updates", state_.updates},
                      {"world", world_}};
  if (state_.holds_scales()) meta["scales"] = "held";
  if (!progress_.recent_grad_norms.empty()) meta["recent_grad_norms"] = progress_.recent_grad_norms;
  if (!progress_.rollout_state.empty()) {
    meta["rollout"] = parse_ordered_json(progress_.rollout_state, "rollout_state");
  }
  if (!progress_.job_config.empty()) meta["job_config"] = progress_.job_config;
  meta["sha256"] = checkpoint_meta_sha256(meta, model_config_json_);
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
