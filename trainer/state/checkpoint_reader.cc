#include "trainer/state/checkpoint_reader.h"

#include <algorithm>
#include <limits>
#include <mutex>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/kernels/held_pack.h"
#include "core/kernels/quantize.h"
#include "core/quant/pack.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxWorld = 1 << 16;

int64_t read_count(const OrderedJson& meta, const char* key, int64_t most, const fs::path& path) {
  const bool is_good = meta.is_object() && meta.contains(key) && meta[key].is_number_integer() &&
                       meta[key].get<int64_t>() >= 0 && meta[key].get<int64_t>() <= most;
  if (!is_good) {
    fail(ErrorCode::kInvalidArgument, "'{}': '{}' must be an integer from 0 to {}", path.string(),
         key, most);
  }
  return meta[key].get<int64_t>();
}

OrderedJson read_meta(const fs::path& directory) {
  const fs::path path = directory / "meta.json";
  if (!fs::exists(path)) {
    fail(ErrorCode::kNotFound, "'{}' is not a finished training checkpoint (no meta.json)",
         directory.string());
  }
  OrderedJson meta = parse_ordered_json(read_file(path, kMaxConfigBytes), path.string());
  const int64_t version = read_count(meta, "format_version", 1 << 20, path);
  if (version != kCheckpointFormatVersion && version != kHeldCheckpointFormatVersion) {
    fail(
        ErrorCode::kInvalidArgument,
        "'{}': format_version {} is not {} or {}; another version of Nibble wrote it, use that one",
        path.string(), version, kCheckpointFormatVersion, kHeldCheckpointFormatVersion);
  }
  const OrderedJson scales = meta.value("scales", OrderedJson());
  if ((version == kHeldCheckpointFormatVersion) != (scales == "held")) {
    fail(ErrorCode::kInvalidArgument, "'{}': 'scales' must be \"held\" in format_version {} only",
         path.string(), kHeldCheckpointFormatVersion);
  }
  return meta;
}

ModelSpec spec_of(const OrderedJson& config, const fs::path& path) {
  return make_model_spec(
      parse_model_config(parse_json(config.dump(), path.string()), path.string()));
}

ModelSpec critic_spec(const OrderedJson& critic, const fs::path& path) {
  const OrderedJson config = critic.value("config", OrderedJson::object());
  return make_model_spec(value_model(spec_of(config, path).config));
}

std::optional<AdapterBase> base_of(const OrderedJson& config, const fs::path& path) {
  if (!config.contains(kLoraKey)) return std::nullopt;
  const auto text = [&](const char* key) {
    const OrderedJson value = config[kLoraKey].value(key, OrderedJson());
    if (!value.is_string()) {
      fail(ErrorCode::kInvalidArgument, "'{}': {}.{} is no text", path.string(), kLoraKey, key);
    }
    return value.get<std::string>();
  };
  return AdapterBase{text("base"), text("base_sha256")};
}

QuantizationPlan plan_of(const OrderedJson& config, const ModelSpec& spec, const fs::path& path) {
  const auto quantization =
      parse_quantization_config(parse_json(config.dump(), path.string()), path.string());
  return quantization ? plan_from_config(spec.table, *quantization) : plan_bf16(spec.table);
}

// Older checkpoints have none.
std::vector<double> read_norms(const OrderedJson& meta, const fs::path& path) {
  try {
    return meta.value("recent_grad_norms", std::vector<double>());
  } catch (const OrderedJson::exception&) {
    fail(ErrorCode::kInvalidArgument, "'{}': recent_grad_norms are no numbers", path.string());
  }
}

std::string read_job_config(const OrderedJson& meta, const fs::path& path) {
  const OrderedJson text = meta.value("job_config", OrderedJson(""));
  if (!text.is_string()) {
    fail(ErrorCode::kInvalidArgument, "'{}': job_config is no text", path.string());
  }
  return text.get<std::string>();
}

}  // namespace

bool is_train_checkpoint(const fs::path& directory) {
  if (!fs::is_directory(directory)) return false;
  if (fs::exists(directory / "meta.json")) return true;
  return std::any_of(fs::directory_iterator(directory), fs::directory_iterator(),
                     [](const fs::directory_entry& entry) {
                       return entry.path().filename().string().starts_with("rank-000-of-");
                     });
}

std::string checkpoint_meta_sha256(const OrderedJson& meta, std::string_view config_json) {
  OrderedJson others = meta;
  others.erase("sha256");
  Sha256 sha;
  const std::string text = others.dump();
  sha.update(std::as_bytes(std::span(text)));
  sha.update(std::as_bytes(std::span(config_json)));
  return sha.finish();
}

struct CheckpointReader::OpenedBase {
  std::once_flag once;
  std::optional<FrozenBase> base;  // written once
};

CheckpointReader::CheckpointReader(const fs::path& directory)
    : directory_(directory), opened_base_(std::make_shared<OpenedBase>()) {
  const fs::path meta_path = directory / "meta.json";
  const OrderedJson meta = read_meta(directory);
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  progress_ = {read_count(meta, "step", kAny, meta_path),
               read_count(meta, "weight_version", kAny, meta_path),
               read_count(meta, "updates", kAny, meta_path),
               read_norms(meta, meta_path),
               meta.contains("rollout") ? meta["rollout"].dump() : "",
               read_job_config(meta, meta_path)};
  const fs::path config_path = directory / "config.json";
  const std::string config_text = read_file(config_path, kMaxConfigBytes);
  if (meta.value("sha256", OrderedJson()) != checkpoint_meta_sha256(meta, config_text)) {
    fail(ErrorCode::kDataLoss, "'{}' or config.json beside it is not what was saved: damaged",
         meta_path.string());
  }
  holds_scales_ = meta.contains("scales");
  config_ = parse_ordered_json(config_text, config_path.string());
  spec_ = spec_of(config_, config_path);
  base_ = base_of(config_, config_path);
  plan_ = plan_of(config_, spec_, config_path);
  const auto world = static_cast<int>(read_count(meta, "world", kMaxWorld, meta_path));
  rows_.emplace(directory, RowsOf::kModel, world);
  if (!meta.contains("critic")) return;
  const OrderedJson& critic = meta["critic"];
  const int64_t updates = read_count(critic, "updates", kAny, meta_path);
  critic_.emplace(StoredCritic{critic_spec(critic, meta_path), updates,
                               RowFiles(directory, RowsOf::kCritic, world)});
}

void CheckpointReader::read_rows(const std::string& kind, int64_t parameter, RowShard rows,
                                 std::vector<float>& out) const {
  rows_->read_rows(kind, spec_.table.at(parameter), rows, out);
}

void CheckpointReader::read_scales(int64_t parameter, RowShard rows,
                                   std::vector<uint16_t>& out) const {
  const ParameterSpec& spec = spec_.table.at(parameter);
  rows_->read_scales(spec, spec.cols / plan_.config.group_size, rows, out);
}

const FrozenBase& CheckpointReader::open_base(const kernels::Parallel& parallel) const {
  std::call_once(opened_base_->once, [&] {
    const fs::path& directory = base_->directory;
    if (!fs::is_directory(directory)) {
      fail(ErrorCode::kNotFound,
           "checkpoint '{}' holds adapters alone, and the weights beside which they were trained "
           "are not in '{}' any more: put them back",
           directory_.string(), directory.string());
    }
    FrozenBase base(directory, spec_.table, plan_);
    const std::string found = frozen_digest(base, spec_.table, plan_, parallel);
    if (found != base_->digest) {
      fail(ErrorCode::kDataLoss,
           "checkpoint '{}' holds adapters alone, and '{}' has other weights than those beside "
           "which they were trained (digest {} instead of {}): put those back",
           directory_.string(), directory.string(), found, base_->digest);
    }
    opened_base_->base.emplace(std::move(base));
  });
  return *opened_base_->base;
}

StoredParameter CheckpointReader::served(int64_t parameter,
                                         const kernels::Parallel& parallel) const {
  const ParameterSpec& spec = spec_.table.at(parameter);
  if (spec.is_frozen) return open_base(parallel).parameter(parameter, parallel);
  std::vector<float> master;
  read_rows("master", parameter, {0, spec.rows}, master);
  StoredParameter stored;
  if (holds_scales_ && plan_.quantized[static_cast<size_t>(parameter)]) {
    std::vector<uint16_t> scale;
    read_scales(parameter, {0, spec.rows}, scale);
    stored.words.resize(master.size() / quant::kInt4PerWord);
    stored.scale = Array<uint16_t>(std::span<const uint16_t>(scale));
    const kernels::HeldPacking packing =
        kernels::pack_held_int4({master.data(),
                                 {spec.rows, spec.cols, plan_.config.group_size},
                                 scale.data(),
                                 stored.words.data()},
                                parallel);
    if (const auto& problem = packing.problem) {
      fail(ErrorCode::kInvalidArgument, "tensor '{}', row {}, group {}: {}", spec.name(),
           problem->row, problem->group, quant::problem_text(problem->kind));
    }
  } else if (plan_.quantized[static_cast<size_t>(parameter)]) {
    quantize_parameter(spec, master.data(), plan_, parallel, stored);
  } else {
    stored.bf16.resize(master.size());
    kernels::cast_bf16(master.data(), static_cast<int64_t>(master.size()), stored.bf16.data(),
                       parallel);
  }
  return stored;
}

}  // namespace nibble
