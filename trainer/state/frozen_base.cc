#include "trainer/state/frozen_base.h"

#include "core/base/fail.h"
#include "core/base/sha256.h"
#include "core/models/checkpoint_tensors.h"
#include "core/quant/bf16.h"

namespace nibble {
namespace {

ModelConfig config_of(const HfDirectory& directory) {
  return parse_model_config(directory.config(), (directory.path() / "config.json").string());
}

void check_same_model(const HfDirectory& directory, const ParameterTable& own,
                      const ParameterTable& table) {
  for (int64_t p = 0; p < table.size(); ++p) {
    const ParameterSpec& want = table.at(p);
    if (!want.is_frozen) continue;
    const bool fits = p < own.size() && own.at(p).module == want.module &&
                      own.at(p).rows == want.rows && own.at(p).cols == want.cols;
    if (fits) continue;
    fail(ErrorCode::kInvalidArgument, "'{}' is of another model: '{}' does not fit",
         directory.path().string(), want.name());
  }
}

// Two a parameter: of words, or BF16; of scales.
using FrozenHashes = std::vector<quant::ContentHash>;

void add_hashes(const ShardLayout& layout, int64_t p, const StoredParameter& rows,
                const kernels::WeightKernels& kernels, FrozenHashes& hashes) {
  const ParameterSpec& spec = layout.table->at(p);
  const auto first = static_cast<uint64_t>(layout.shard(p).begin);
  const auto cols = static_cast<uint64_t>(spec.cols);
  std::vector<kernels::HashJob> jobs;
  if (layout.quantized(p)) {
    const auto group = static_cast<uint64_t>(layout.plan.config.group_size);
    jobs = {{rows.words.data(), nullptr, std::ssize(rows.words), first * (cols / 8)},
            {nullptr, rows.scale.data(), std::ssize(rows.scale), first * (cols / group)}};
  } else {
    jobs = {{nullptr, rows.bf16.data(), std::ssize(rows.bf16), first * cols}};
  }
  const auto found = kernels.hash(jobs);
  for (size_t i = 0; i < found.size(); ++i) hashes[2 * static_cast<size_t>(p) + i] += found[i];
}

std::string digest_of(const ParameterTable& table, const FrozenHashes& hashes) {
  Sha256 sha;
  const auto add = [&sha](const std::string& text) { sha.update(std::as_bytes(std::span(text))); };
  for (int64_t p = 0; p < table.size(); ++p) {
    if (!table.at(p).is_frozen) continue;
    const auto* of = &hashes[2 * static_cast<size_t>(p)];
    add(fmt::format("{} {:016x}{:016x} {:016x}{:016x}\n", table.at(p).name(), of[0].high, of[0].low,
                    of[1].high, of[1].low));
  }
  return sha.finish();
}

FrozenHashes no_hashes(const ParameterTable& table) {
  return FrozenHashes(2 * table.parameters.size());
}

}  // namespace

FrozenBase::FrozenBase(const std::filesystem::path& directory, const ParameterTable& table,
                       const QuantizationPlan& plan)
    : directory_(directory), table_(table), plan_(plan) {
  const ParameterTable own = model_parameters(config_of(directory_));
  check_same_model(directory_, own, table);
  stored_ = checkpoint_plan(directory_, own);
  check_checkpoint_tensors(directory_, own, stored_);
}

StoredParameter FrozenBase::parameter(int64_t parameter, const kernels::Parallel& parallel) const {
  const auto p = static_cast<size_t>(parameter);
  const ParameterSpec& spec = table_.at(parameter);
  NIBBLE_CHECK(spec.is_frozen, "'{}' is trained", spec.name());
  const bool is_as_stored = stored_.quantized[p] && stored_.config.bits == plan_.config.bits &&
                            stored_.config.group_size == plan_.config.group_size;
  if (plan_.quantized[p] && is_as_stored) return load_packed(directory_, spec, plan_.config);
  StoredParameter out;
  const std::vector<uint16_t> weight = load_bf16(directory_, spec);
  if (!plan_.quantized[p]) {
    out.bf16 = Array<uint16_t>(std::span<const uint16_t>(weight));
    return out;
  }
  std::vector<float> master(weight.size());
  for (size_t i = 0; i < weight.size(); ++i) master[i] = quant::bf16_to_float(weight[i]);
  quantize_parameter(spec, master.data(), plan_, parallel, out);
  return out;
}

std::vector<StoredParameter> load_frozen_rows(const FrozenBase& base, const ShardLayout& layout,
                                              DeviceKind device,
                                              const kernels::Parallel& parallel) {
  std::vector<StoredParameter> frozen;
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const ParameterSpec& spec = layout.table->at(p);
    const RowShard shard = layout.shard(p);
    StoredParameter& out = frozen.emplace_back();
    if (!layout.is_frozen(p)) continue;
    if (shard.rows() > 0) {
      out = base.parameter(p, parallel);
      if (shard.rows() < spec.rows) out = out.rows(spec, layout.plan, shard);
    }
    if (device != DeviceKind::kCpu) out = out.to(device);
  }
  return frozen;
}

std::string frozen_digest(const ShardLayout& layout, std::span<const StoredParameter> frozen,
                          const kernels::WeightKernels& kernels, ProcessGroup& group) {
  FrozenHashes own = no_hashes(*layout.table);
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    if (layout.is_frozen(p)) add_hashes(layout, p, frozen[static_cast<size_t>(p)], kernels, own);
  }
  FrozenHashes all(own.size() * static_cast<size_t>(group.world()));
  group.all_gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(all)))->wait();
  FrozenHashes sum = no_hashes(*layout.table);
  for (size_t i = 0; i < all.size(); ++i) sum[i % sum.size()] += all[i];
  return digest_of(*layout.table, sum);
}

std::string frozen_digest(const FrozenBase& base, const ParameterTable& table,
                          const QuantizationPlan& plan, const kernels::Parallel& parallel) {
  const ShardLayout whole{&table, plan, Mesh{1}, 0};
  const kernels::CpuWeightKernels kernels(parallel);
  FrozenHashes hashes = no_hashes(table);
  for (int64_t p = 0; p < table.size(); ++p) {
    if (!whole.is_frozen(p)) continue;
    add_hashes(whole, p, base.parameter(p, parallel), kernels, hashes);
  }
  return digest_of(table, hashes);
}

}  // namespace nibble
