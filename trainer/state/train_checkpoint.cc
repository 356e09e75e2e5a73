#include "trainer/state/train_checkpoint.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <map>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/sha256.h"
#include "core/checkpoint/safetensors.h"
#include "core/checkpoint/weights_digest.h"
#include "core/comm/reduce.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKinds[] = {"m", "master", "v"};  // sorted

const std::vector<Array<float>>& arrays_of(const OptimizerState& state, std::string_view kind) {
  return kind == "master" ? state.master : kind == "m" ? state.m : state.v;
}

// An array's elements on the host, copied only if they are not.
template <typename T>
void write_array(SafetensorsWriter& writer, const std::string& name, const Array<T>& array) {
  if (array.empty()) return;
  const Array<T> on_host =
      array.device() == DeviceKind::kCpu ? Array<T>() : array.to(DeviceKind::kCpu);
  const Array<T>& values = on_host.empty() ? array : on_host;
  writer.write(name, std::as_bytes(std::span(values)));
}

void write_rank_file(const fs::path& path, const ShardLayout& layout, const OptimizerState& state,
                     const kernels::WeightKernels& kernels) {
  std::vector<TensorInfo> infos;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> hash_keys;
  std::vector<kernels::HashJob> hash_jobs;
  for (const char* kind : kKinds) {
    for (int64_t p = 0; p < layout.table->size(); ++p) {
      const ParameterSpec& whole = layout.table->at(p);
      const RowShard shard = layout.shard(p);
      if (shard.rows() == 0) continue;
      infos.push_back(
          {fmt::format("{}/{}", kind, whole.name()), DType::kF32, {shard.rows(), whole.cols}});
      metadata["first_row/" + whole.name()] = std::to_string(shard.begin);
      const Array<float>& array = arrays_of(state, kind)[static_cast<size_t>(p)];
      hash_keys.push_back(checkpoint_hash_key(kind, whole));
      hash_jobs.push_back({reinterpret_cast<const uint32_t*>(array.data()), nullptr,
                           std::ssize(array), static_cast<uint64_t>(shard.begin * whole.cols)});
    }
  }
  for (size_t p = 0; p < state.held_scale.size(); ++p) {
    const ParameterSpec& whole = layout.table->at(static_cast<int64_t>(p));
    const RowShard shard = layout.shard(static_cast<int64_t>(p));
    const Array<uint16_t>& scale = state.held_scale[p];
    if (scale.empty()) continue;
    const int64_t groups_per_row = whole.cols / layout.plan.config.group_size;
    infos.push_back({"scale/" + whole.name(), DType::kBf16, {shard.rows(), groups_per_row}});
    hash_keys.push_back(checkpoint_hash_key("scale", whole));
    hash_jobs.push_back({nullptr, scale.data(), std::ssize(scale),
                         static_cast<uint64_t>(shard.begin * groups_per_row)});
  }
  const std::vector<quant::ContentHash> hashes = kernels.hash(hash_jobs);
  for (size_t i = 0; i < hashes.size(); ++i) {
    metadata[hash_keys[i]] = content_hash_text(hashes[i]);
  }
  SafetensorsWriter writer(path, infos, metadata);
  for (const char* kind : kKinds) {
    for (int64_t p = 0; p < layout.table->size(); ++p) {
      write_array(writer, fmt::format("{}/{}", kind, layout.table->at(p).name()),
                  arrays_of(state, kind)[static_cast<size_t>(p)]);
    }
  }
  for (size_t p = 0; p < state.held_scale.size(); ++p) {
    write_array(writer, "scale/" + layout.table->at(static_cast<int64_t>(p)).name(),
                state.held_scale[p]);
  }
  writer.finish();
}

// A barrier that also tells everybody whether all ranks succeeded so far.
bool all_succeeded(ProcessGroup& group, bool mine) {
  double failures = mine ? 0.0 : 1.0;
  all_reduce_sum(group, std::span(&failures, 1));
  return failures == 0.0;
}

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:06}", step); }

void save_train_checkpoint(const fs::path& directory, const ShardLayout& layout,
                           const OptimizerState& state, const TrainProgress& progress,
                           const std::string& model_config_json, ProcessGroup& group,
                           const kernels::WeightKernels& kernels) {
  const fs::path partial = directory.string() + ".partial";
  std::exception_ptr problem;
  const auto attempt = [&](auto&& body) {
    try {
      if (!problem) body();
    } catch (const Error&) {
      problem = std::current_exception();
    }
  };
  // Every rank reaches every barrier, or one rank's full disk would hang the others.
  const auto finish_phase = [&](const char* phase) {
    const bool good = all_succeeded(group, problem == nullptr);
    if (good) return;
    if (group.rank() == 0) fs::remove_all(partial);
    if (problem) std::rethrow_exception(problem);
    fail(ErrorCode::kUnavailable, "another rank could not {} checkpoint '{}'", phase,
         directory.string());
  };
  attempt([&] {
    if (group.rank() != 0) return;
    fs::remove_all(partial);
    std::error_code error;
    fs::create_directories(partial, error);
    if (error) {
      fail(ErrorCode::kResourceExhausted, "cannot create '{}': {}", partial.string(),
           error.message());
    }
  });
  finish_phase("start");
  attempt([&] {
    write_rank_file(partial / checkpoint_rank_file(group.rank(), group.world()), layout, state,
                    kernels);
  });
  finish_phase("write");
  attempt([&] {
    if (group.rank() != 0) return;
    write_file_atomically(partial / "config.json", model_config_json);
    OrderedJson meta = {{"format_version", state.holds_scales() ? kHeldCheckpointFormatVersion
                                                                : kCheckpointFormatVersion},
                        {"step", progress.step},
                        {"weight_version", progress.weight_version},
                        {"updates", progress.updates},
                        {"world", group.world()}};
    if (state.holds_scales()) meta["scales"] = "held";
    if (!progress.recent_grad_norms.empty()) {
      meta["recent_grad_norms"] = progress.recent_grad_norms;
    }
    if (!progress.rollout_state.empty()) {
      meta["rollout"] = parse_ordered_json(progress.rollout_state, "rollout_state");
    }
    if (!progress.job_config.empty()) meta["job_config"] = progress.job_config;
    meta["sha256"] = checkpoint_meta_sha256(meta, model_config_json);
    write_file_atomically(partial / "meta.json", meta.dump(2) + "\n");
    fs::remove_all(directory);
    publish_directory(partial, directory);
  });
  finish_phase("publish");
}

TrainProgress load_train_checkpoint(const fs::path& directory, const ShardLayout& layout,
                                    OptimizerState& state) {
  const CheckpointReader reader(directory);
  if (reader.holds_scales() != state.holds_scales()) {
    fail(ErrorCode::kFailedPrecondition,
         "checkpoint '{}' is of a run that {} its scales, and this one {} them: resume it with the "
         "qat.start that it was trained with",
         directory.string(), reader.holds_scales() ? "holds" : "derives",
         state.holds_scales() ? "holds" : "derives");
  }
  const QuantizationPlan& plan = reader.serve_plan();
  if (reader.holds_scales() && (plan.quantized != layout.plan.quantized ||
                                plan.config.group_size != layout.plan.config.group_size)) {
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}' holds scales of groups of {}, and this run has groups of {} or quantizes "
         "other matrices: resume it with the model.int4 that it was trained with",
         directory.string(), plan.config.group_size, layout.plan.config.group_size);
  }
  const ParameterTable& stored = reader.spec().table;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& want = layout.table->at(p);
    if (p >= stored.size() || stored.at(p).name() != want.name() ||
        stored.at(p).rows != want.rows || stored.at(p).cols != want.cols) {
      fail(ErrorCode::kInvalidArgument, "checkpoint '{}' is of another model: '{}' does not fit",
           directory.string(), want.name());
    }
    const auto index = static_cast<size_t>(p);
    std::vector<float> rows;
    const auto read = [&](const char* kind, Array<float>& out) {
      reader.read_rows(kind, p, layout.shard(p), rows);
      out = Array<float>(std::span<const float>(rows), out.device());
    };
    read("master", state.master[index]);
    read("m", state.m[index]);
    read("v", state.v[index]);
    if (!reader.holds_scales() || !layout.quantized(p)) continue;
    std::vector<uint16_t> scales;
    reader.read_scales(p, layout.shard(p), scales);
    state.held_scale[index] =
        Array<uint16_t>(std::span<const uint16_t>(scales), state.master[index].device());
  }
  state.updates = reader.progress().updates;
  return reader.progress();
}

std::vector<CheckpointEntry> list_checkpoints(const fs::path& root) {
  std::vector<CheckpointEntry> entries;
  if (!fs::is_directory(root)) return entries;
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("step-") || name.ends_with(".partial")) continue;
    if (!fs::exists(entry.path() / "meta.json")) {
      get_logger("checkpoint")
          ->warn("'{}' has no meta.json and is passed over: it is damaged", entry.path().string());
      continue;
    }
    entries.push_back({std::strtoll(name.c_str() + 5, nullptr, 10), entry.path()});
  }
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

CheckpointDigest digest_checkpoint(const fs::path& directory) {
  const CheckpointReader reader(directory);
  const ParameterTable& table = reader.spec().table;
  std::map<std::string, int64_t> by_name;
  for (int64_t p = 0; p < table.size(); ++p) by_name[table.at(p).name()] = p;
  WeightsDigest weights;
  Sha256 state;
  state.update(std::as_bytes(std::span(&reader.progress().updates, 1)));
  const kernels::Serial serial;
  std::vector<float> rows;
  for (const auto& [name, p] : by_name) {
    for (const char* kind : kKinds) {
      reader.read_rows(kind, p, {0, table.at(p).rows}, rows);
      state.update(std::as_bytes(std::span(rows)));
    }
    const StoredParameter stored = reader.served(p, serial);
    if (reader.holds_scales()) state.update(std::as_bytes(std::span(stored.scale)));
    if (reader.serve_plan().quantized[static_cast<size_t>(p)]) {
      weights.add(table.at(p).module + ".weight_packed", std::as_bytes(std::span(stored.words)));
      weights.add(table.at(p).module + ".weight_scale", std::as_bytes(std::span(stored.scale)));
    } else {
      weights.add(name, std::as_bytes(std::span(stored.bf16)));
    }
  }
  return {reader.progress(), weights.finish(), state.finish()};
}

}  // namespace nibble
