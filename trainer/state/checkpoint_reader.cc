#include "trainer/state/checkpoint_reader.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>
#include <mutex>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/kernels/held_pack.h"
#include "core/kernels/quantize.h"
#include "core/quant/pack.h"
#include "trainer/state/calibrated_start.h"

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

std::string checkpoint_rank_file(int rank, int world) {
  return fmt::format("rank-{:03}-of-{:03}.safetensors", rank, world);
}

std::string checkpoint_hash_key(const std::string& kind, const ParameterSpec& parameter) {
  return fmt::format("hash/{}/{}", kind, parameter.name());
}

std::string content_hash_text(const quant::ContentHash& hash) {
  return fmt::format("{:016x}{:016x}", hash.high, hash.low);
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
  for (int rank = 0; rank < world; ++rank) {
    files_.emplace_back(directory / checkpoint_rank_file(rank, world));
  }
}

RowShard CheckpointReader::rows_in_file(const SafetensorsFile& file, const Slices& slices,
                                        const ParameterSpec& parameter) const {
  const std::string name = slices.kind + "/" + parameter.name();
  const TensorView view = file.tensor(name);
  if (view.dtype != slices.dtype || view.shape.size() != 2 || view.shape[1] != slices.width) {
    fail(ErrorCode::kInvalidArgument, "'{}', tensor '{}': wrong type or width",
         file.path().string(), name);
  }
  const auto found = file.metadata().find("first_row/" + parameter.name());
  int64_t first = -1;
  if (found != file.metadata().end()) {
    const std::string& text = found->second;
    std::from_chars(text.data(), text.data() + text.size(), first);
  }
  if (first < 0 || first > parameter.rows || view.shape[0] > parameter.rows - first) {
    fail(ErrorCode::kDataLoss, "'{}' does not say where the rows of '{}' belong",
         file.path().string(), parameter.name());
  }
  return {first, first + view.shape[0]};
}

void CheckpointReader::check_hash(const SafetensorsFile& file, const Slices& slices,
                                  const ParameterSpec& parameter, int64_t first_row) const {
  const TensorView view = file.tensor(slices.kind + "/" + parameter.name());
  const auto element_bytes = static_cast<size_t>(dtype_bytes(slices.dtype));
  const bool is_aligned = reinterpret_cast<uintptr_t>(view.bytes.data()) % element_bytes == 0;
  const auto found = file.metadata().find(checkpoint_hash_key(slices.kind, parameter));
  const auto count = static_cast<int64_t>(view.bytes.size() / element_bytes);
  const auto first = static_cast<uint64_t>(first_row * slices.width);
  if (is_aligned && found != file.metadata().end()) {
    const kernels::Serial serial;
    const quant::ContentHash hash =
        slices.dtype == DType::kF32 ? kernels::hash_words(view.as<uint32_t>(), count, first, serial)
                                    : kernels::hash_bf16(view.as<uint16_t>(), count, first, serial);
    if (found->second == content_hash_text(hash)) return;
  }
  fail(
      ErrorCode::kDataLoss,
      "'{}', tensor '{}/{}': not the bytes that were saved (their hash differs); remove '{}' to go "
      "on from the checkpoint before it",
      file.path().string(), slices.kind, parameter.name(), directory_.string());
}

void CheckpointReader::read_rows(const std::string& kind, int64_t parameter, RowShard rows,
                                 std::vector<float>& out) const {
  const ParameterSpec& spec = spec_.table.at(parameter);
  out.resize(static_cast<size_t>(rows.rows() * spec.cols));
  read_slices({kind, DType::kF32, spec.cols}, spec, rows,
              std::as_writable_bytes(std::span(out)).data());
}

void CheckpointReader::read_scales(int64_t parameter, RowShard rows,
                                   std::vector<uint16_t>& out) const {
  const ParameterSpec& spec = spec_.table.at(parameter);
  const int64_t groups_per_row = spec.cols / plan_.config.group_size;
  out.resize(static_cast<size_t>(rows.rows() * groups_per_row));
  read_slices({"scale", DType::kBf16, groups_per_row}, spec, rows,
              std::as_writable_bytes(std::span(out)).data());
  check_held_scales("checkpoint '" + directory_.string() + "'", spec, rows.begin, out,
                    groups_per_row);
}

void CheckpointReader::read_slices(const Slices& slices, const ParameterSpec& spec, RowShard rows,
                                   std::byte* out) const {
  const std::string name = slices.kind + "/" + spec.name();
  const int64_t row_bytes = slices.width * dtype_bytes(slices.dtype);
  std::vector<std::pair<RowShard, const SafetensorsFile*>> parts;
  for (const SafetensorsFile& file : files_) {
    if (file.contains(name)) parts.emplace_back(rows_in_file(file, slices, spec), &file);
  }
  std::sort(parts.begin(), parts.end(),
            [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  int64_t copied = 0;
  for (const auto& [held, file] : parts) {
    const int64_t begin = std::max(held.begin, rows.begin + copied);
    const int64_t end = std::min(held.end, rows.end);
    if (begin != rows.begin + copied || begin >= end) continue;
    check_hash(*file, slices, spec, held.begin);
    const TensorView view = file->tensor(name);
    std::memcpy(out + (begin - rows.begin) * row_bytes,
                view.bytes.data() + (begin - held.begin) * row_bytes,
                static_cast<size_t>((end - begin) * row_bytes));
    copied += end - begin;
  }
  if (copied != rows.rows()) {
    fail(
        ErrorCode::kDataLoss,
        "checkpoint '{}': its rank files hold {} of rows [{}, {}) of '{}', the next missing one is "
        "{}; a file is damaged, remove '{}' to go on from the checkpoint before it",
        directory_.string(), copied, rows.begin, rows.end, name, rows.begin + copied,
        directory_.string());
  }
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
