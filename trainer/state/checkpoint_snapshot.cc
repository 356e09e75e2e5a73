#include "trainer/state/checkpoint_snapshot.h"

#include <algorithm>
#include <exception>
#include <map>
#include <utility>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/comm/reduce.h"
#include "core/kernels/quantize.h"
#include "core/quant/bf16.h"

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

// BF16 moments are saved in float32, where they are the same numbers: either optimizer.state reads
// a checkpoint of the other.
Array<float> widened(const Array<uint16_t>& moments) {
  Array<float> wide = Array<float>::uninitialized(moments.size());
  std::transform(moments.begin(), moments.end(), wide.begin(), quant::bf16_to_float);
  return wide;
}

// Rows of float32 that lie there as such, or as BF16.
struct MomentRows {
  const Array<float>* fp32 = nullptr;
  const Array<uint16_t>* bf16 = nullptr;
};
MomentRows rows_of(const std::vector<Array<float>>& fp32, const std::vector<Array<uint16_t>>& bf16,
                   size_t parameter) {
  if (bf16.empty()) return {&fp32[parameter], nullptr};
  return {nullptr, &bf16[parameter]};
}

// Calls `use` with them in float32; a copy, where it takes one, lives no longer.
template <typename Use>
void with_fp32(const MomentRows& rows, Use use) {
  if (rows.fp32 != nullptr) return use(std::span<const float>(*rows.fp32));
  const Array<float> wide = widened(*rows.bf16);
  use(std::span<const float>(wide));
}

// One tensor of a rank's file: float32 rows, or scales.
struct StoredRows {
  TensorInfo info;
  MomentRows rows;
  std::span<const uint16_t> scales;
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
  const std::vector<Array<uint16_t>> none;
  const auto arrays_of = [&](std::string_view kind, int64_t parameter) {
    const auto p = static_cast<size_t>(parameter);
    if (kind == "master") return rows_of(state_.master, none, p);
    return kind == "m" ? rows_of(state_.m, state_.m_bf16, p) : rows_of(state_.v, state_.v_bf16, p);
  };
  for (const char* kind : {"m", "master", "v"}) {  // sorted
    for (int64_t p = 0; p < layout_.table->size(); ++p) {
      const ParameterSpec& whole = layout_.table->at(p);
      const RowShard shard = layout_.trained(p);
      if (shard.rows() == 0) continue;
      metadata["first_row/" + whole.name()] = std::to_string(shard.begin);
      const MomentRows rows = arrays_of(kind, p);
      quant::ContentHash hash;
      with_fp32(rows, [&](std::span<const float> values) {
        hash = kernels::hash_words(reinterpret_cast<const uint32_t*>(values.data()),
                                   std::ssize(values),
                                   static_cast<uint64_t>(shard.begin * whole.cols), serial);
      });
      stored.push_back(
          {{fmt::format("{}/{}", kind, whole.name()), DType::kF32, {shard.rows(), whole.cols}},
           rows,
           {},
           checkpoint_hash_key(kind, whole),
           hash});
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
         {},
         std::span<const uint16_t>(scale),
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
  for (const StoredRows& tensor : stored) {
    if (!tensor.scales.empty()) {
      writer.write(tensor.info.name, std::as_bytes(tensor.scales));
      continue;
    }
    with_fp32(tensor.rows, [&](std::span<const float> values) {
      writer.write(tensor.info.name, std::as_bytes(values));
    });
  }
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
