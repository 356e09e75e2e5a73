#include "trainer/state/train_checkpoint.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/checkpoint/safetensors.h"
#include "core/models/decoder.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int kFormatVersion = 1;
constexpr const char* kKinds[] = {"m", "master", "v"};  // sorted

std::string rank_file(int rank, int world) {
  return fmt::format("rank-{:03}-of-{:03}.safetensors", rank, world);
}

const std::vector<std::vector<float>>& arrays_of(const OptimizerState& state,
                                                 std::string_view kind) {
  return kind == "master" ? state.master : kind == "m" ? state.m : state.v;
}

void write_rank_file(const fs::path& path, const ShardLayout& layout, const OptimizerState& state) {
  std::vector<TensorInfo> infos;
  std::map<std::string, std::string> metadata;
  for (const char* kind : kKinds) {
    for (int64_t p = 0; p < layout.table->size(); ++p) {
      const ParameterSpec& whole = layout.table->at(p);
      const RowShard shard = layout.shard(p);
      infos.push_back(
          {fmt::format("{}/{}", kind, whole.name()), DType::kF32, {shard.rows(), whole.cols}});
      metadata["first_row/" + whole.name()] = std::to_string(shard.begin);
    }
  }
  SafetensorsWriter writer(path, infos, metadata);
  for (const char* kind : kKinds) {
    for (int64_t p = 0; p < layout.table->size(); ++p) {
      writer.write(fmt::format("{}/{}", kind, layout.table->at(p).name()),
                   std::as_bytes(std::span(arrays_of(state, kind)[static_cast<size_t>(p)])));
    }
  }
  writer.finish();
}

// A barrier that also tells everybody whether all ranks succeeded so far.
bool all_succeeded(ProcessGroup& group, bool mine) {
  double failures = mine ? 0.0 : 1.0;
  all_reduce_sum(group, std::span(&failures, 1));
  return failures == 0.0;
}

struct OpenCheckpoint {
  fs::path directory;
  TrainProgress progress;
  ModelSpec spec;
  QuantizationPlan plan;
  std::vector<SafetensorsFile> files;

  // First row of `name` in file i.
  int64_t first_row(size_t i, const std::string& name) const {
    const auto& metadata = files[i].metadata();
    const auto found = metadata.find("first_row/" + name);
    if (found == metadata.end()) {
      fail(ErrorCode::kDataLoss, "'{}' does not say where '{}' starts", files[i].path().string(),
           name);
    }
    return std::strtoll(found->second.c_str(), nullptr, 10);
  }
};

OpenCheckpoint open_checkpoint(const fs::path& directory) {
  if (!fs::exists(directory / "meta.json")) {
    fail(ErrorCode::kNotFound, "'{}' is not a finished training checkpoint (no meta.json)",
         directory.string());
  }
  const Json meta = read_json_file(directory / "meta.json");
  if (meta.value("format_version", 0) != kFormatVersion) {
    fail(ErrorCode::kInvalidArgument, "'{}/meta.json': format_version {} is not {}",
         directory.string(), meta.value("format_version", 0), kFormatVersion);
  }
  const Json config = read_json_file(directory / "config.json");
  OpenCheckpoint open{
      directory,
      {},
      make_model_spec(parse_model_config(config, (directory / "config.json").string())),
      {},
      {}};
  open.progress = {meta.at("step").get<int64_t>(), meta.at("weight_version").get<int64_t>(),
                   meta.at("updates").get<int64_t>()};
  const auto quantization = parse_quantization_config(config, directory.string());
  open.plan =
      quantization ? plan_from_config(open.spec.table, *quantization) : plan_bf16(open.spec.table);
  const int world = meta.at("world").get<int>();
  for (int rank = 0; rank < world; ++rank) {
    open.files.emplace_back(directory / rank_file(rank, world));
  }
  return open;
}

// Rows [begin, end) of one tensor, collected from the files that have them.
void read_rows(const OpenCheckpoint& open, const std::string& kind, const ParameterSpec& parameter,
               RowShard want, std::vector<float>& out) {
  out.resize(static_cast<size_t>(want.rows() * parameter.cols));
  int64_t copied = 0;
  for (size_t i = 0; i < open.files.size(); ++i) {
    const TensorView view = open.files[i].tensor(kind + "/" + parameter.name());
    if (view.dtype != DType::kF32 || view.shape.size() != 2 || view.shape[1] != parameter.cols) {
      fail(ErrorCode::kInvalidArgument, "'{}', tensor '{}/{}': wrong type or width",
           open.files[i].path().string(), kind, parameter.name());
    }
    const int64_t first = open.first_row(i, parameter.name());
    const int64_t begin = std::max(first, want.begin);
    const int64_t end = std::min(first + view.shape[0], want.end);
    if (begin >= end) continue;
    std::memcpy(out.data() + (begin - want.begin) * parameter.cols,
                view.as<float>() + (begin - first) * parameter.cols,
                static_cast<size_t>((end - begin) * parameter.cols) * sizeof(float));
    copied += end - begin;
  }
  if (copied != want.rows()) {
    fail(ErrorCode::kDataLoss, "checkpoint '{}' has {} of {} rows of '{}/{}'",
         open.directory.string(), copied, want.rows(), kind, parameter.name());
  }
}

}  // namespace

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:06}", step); }

void save_train_checkpoint(const fs::path& directory, const ShardLayout& layout,
                           const OptimizerState& state, const TrainProgress& progress,
                           const std::string& model_config_json, ProcessGroup& group) {
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
  attempt(
      [&] { write_rank_file(partial / rank_file(group.rank(), group.world()), layout, state); });
  finish_phase("write");
  attempt([&] {
    if (group.rank() != 0) return;
    write_file_atomically(partial / "config.json", model_config_json);
    const OrderedJson meta = {{"format_version", kFormatVersion},
                              {"step", progress.step},
                              {"weight_version", progress.weight_version},
                              {"updates", progress.updates},
                              {"world", group.world()}};
    write_file_atomically(partial / "meta.json", meta.dump(2) + "\n");
    fs::remove_all(directory);
    publish_directory(partial, directory);
  });
  finish_phase("publish");
}

TrainProgress load_train_checkpoint(const fs::path& directory, const ShardLayout& layout,
                                    OptimizerState& state) {
  const OpenCheckpoint open = open_checkpoint(directory);
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& parameter = layout.table->at(p);
    const auto index = static_cast<size_t>(p);
    read_rows(open, "master", parameter, layout.shard(p), state.master[index]);
    read_rows(open, "m", parameter, layout.shard(p), state.m[index]);
    read_rows(open, "v", parameter, layout.shard(p), state.v[index]);
  }
  state.updates = open.progress.updates;
  return open.progress;
}

std::vector<CheckpointEntry> list_checkpoints(const fs::path& root) {
  std::vector<CheckpointEntry> entries;
  if (!fs::is_directory(root)) return entries;
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("step-") || name.ends_with(".partial")) continue;
    if (!fs::exists(entry.path() / "meta.json")) continue;
    entries.push_back({std::strtoll(name.c_str() + 5, nullptr, 10), entry.path()});
  }
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

void prune_checkpoints(const fs::path& root, int64_t keep) {
  const auto entries = list_checkpoints(root);
  for (size_t i = 0; i + static_cast<size_t>(keep) < entries.size(); ++i) {
    fs::remove_all(entries[i].path);
  }
  if (!fs::is_directory(root)) return;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (entry.path().filename().string().ends_with(".partial")) fs::remove_all(entry.path());
  }
}

CheckpointDigest digest_checkpoint(const fs::path& directory) {
  const OpenCheckpoint open = open_checkpoint(directory);
  const ShardLayout whole{&open.spec.table, open.plan, 0, 1};
  std::map<std::string, int64_t> by_name;
  for (int64_t p = 0; p < open.spec.table.size(); ++p) by_name[open.spec.table.at(p).name()] = p;
  Sha256 weights;
  Sha256 state;
  state.update(std::as_bytes(std::span(&open.progress.updates, 1)));
  const kernels::Serial serial;
  std::vector<float> rows;
  for (const auto& [name, p] : by_name) {
    const ParameterSpec& parameter = open.spec.table.at(p);
    for (const char* kind : kKinds) {
      read_rows(open, kind, parameter, {0, parameter.rows}, rows);
      state.update(std::as_bytes(std::span(rows)));
      if (std::string_view(kind) != "master") continue;
      StoredParameter stored;
      if (whole.quantized(p)) {
        quantize_parameter(parameter, rows.data(), open.plan, serial, stored);
      } else {
        stored.bf16.resize(rows.size());
        kernels::cast_bf16(rows.data(), static_cast<int64_t>(rows.size()), stored.bf16.data(),
                           serial);
      }
      weights.update(std::as_bytes(std::span(stored.words)));
      weights.update(std::as_bytes(std::span(stored.scale)));
      weights.update(std::as_bytes(std::span(stored.bf16)));
    }
  }
  return {open.progress, weights.finish(), state.finish()};
}

}  // namespace nibble
