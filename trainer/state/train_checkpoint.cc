#include "trainer/state/train_checkpoint.h"

#include <algorithm>
#include <map>

#include "core/base/fail.h"
#include "core/base/sha256.h"
#include "core/checkpoint/weights_digest.h"
#include "core/quant/bf16.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKinds[] = {"m", "master", "v"};  // sorted

// Of float32 that is saved: exact for what was BF16, to nearest for what was not.
std::vector<uint16_t> narrowed(const std::vector<float>& moments) {
  std::vector<uint16_t> bits(moments.size());
  std::transform(moments.begin(), moments.end(), bits.begin(), quant::float_to_bf16);
  return bits;
}

void check_parameter(const fs::path& directory, const ParameterTable& stored,
                     const ParameterSpec& want, int64_t p) {
  if (p < stored.size() && stored.at(p).name() == want.name() && stored.at(p).rows == want.rows &&
      stored.at(p).cols == want.cols) {
    return;
  }
  fail(ErrorCode::kInvalidArgument, "checkpoint '{}' is of another model: '{}' does not fit",
       directory.string(), want.name());
}

// Masters and moments of this rank's rows.
void read_state(const fs::path& directory, const ParameterTable& stored, const RowFiles& files,
                const ShardLayout& layout, OptimizerState& state) {
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    check_parameter(directory, stored, layout.table->at(p), p);
    if (layout.is_frozen(p)) continue;
    const auto index = static_cast<size_t>(p);
    std::vector<float> rows;
    const auto read = [&](const char* kind) -> const std::vector<float>& {
      files.read_rows(kind, stored.at(p), layout.shard(p), rows);
      return rows;
    };
    state.master[index].assign(read("master"));
    if (state.has_bf16_moments()) {
      state.m_bf16[index].assign(narrowed(read("m")));
      state.v_bf16[index].assign(narrowed(read("v")));
    } else {
      state.m[index].assign(read("m"));
      state.v[index].assign(read("v"));
    }
  }
}

std::map<std::string, int64_t> by_name(const ParameterTable& table) {
  std::map<std::string, int64_t> places;
  for (int64_t p = 0; p < table.size(); ++p) places[table.at(p).name()] = p;
  return places;
}

}  // namespace

void check_same_adapters(const CheckpointReader& checkpoint, const std::optional<LoraShape>& lora) {
  const std::optional<LoraShape>& stored = checkpoint.spec().config.lora;
  if (stored == lora) return;
  const auto text = [](const std::optional<LoraShape>& shape) {
    if (!shape) return std::string("lora.rank 0");
    return fmt::format("lora.rank {}, lora.alpha {} and lora.targets {}", shape->rank, shape->alpha,
                       lora_targets_name(shape->targets));
  };
  fail(ErrorCode::kInvalidArgument,
       "checkpoint '{}' was trained with {}, this run has {}: resume it with those that it has, or "
       "`nibble export` it and begin anew",
       checkpoint.path().string(), text(stored), text(lora));
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
  read_state(directory, reader.spec().table, reader.rows(), layout, state);
  for (int64_t p = 0; reader.holds_scales() && p < layout.table->size(); ++p) {
    if (!layout.quantized(p)) continue;
    const auto index = static_cast<size_t>(p);
    std::vector<uint16_t> scales;
    reader.read_scales(p, layout.shard(p), scales);
    state.held_scale[index] =
        Array<uint16_t>(std::span<const uint16_t>(scales), state.master[index].device());
  }
  state.updates = reader.progress().updates;
  return reader.progress();
}

bool load_critic_checkpoint(const fs::path& directory, const ShardLayout& layout,
                            OptimizerState& state) {
  const CheckpointReader reader(directory);
  const StoredCritic* critic = reader.critic();
  if (critic == nullptr) return false;
  read_state(directory, critic->spec.table, critic->rows, layout, state);
  state.updates = critic->updates;
  return true;
}

CheckpointDigest digest_checkpoint(const fs::path& directory) {
  const CheckpointReader reader(directory);
  const ParameterTable& table = reader.spec().table;
  WeightsDigest weights;
  Sha256 state;
  state.update(std::as_bytes(std::span(&reader.progress().updates, 1)));
  const kernels::Serial serial;
  std::vector<float> rows;
  for (const auto& [name, p] : by_name(table)) {
    for (const char* kind : kKinds) {
      if (table.at(p).is_frozen) break;
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
  if (const StoredCritic* critic = reader.critic()) {
    state.update(std::as_bytes(std::span(&critic->updates, 1)));
    for (const auto& [name, p] : by_name(critic->spec.table)) {
      const ParameterSpec& parameter = critic->spec.table.at(p);
      for (const char* kind : kKinds) {
        critic->rows.read_rows(kind, parameter, {0, parameter.rows}, rows);
        state.update(std::as_bytes(std::span(rows)));
      }
    }
  }
  return {reader.progress(), weights.finish(), state.finish()};
}

}  // namespace nibble
