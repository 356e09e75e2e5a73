#include "trainer/state/row_files.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <span>
#include <utility>

#include "core/base/fail.h"
#include "core/kernels/quantize.h"
#include "core/quant/bf16.h"
#include "trainer/state/calibrated_start.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

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

}  // namespace

std::string row_file_name(RowsOf whose, int rank, int world) {
  return fmt::format("{}-{:03}-of-{:03}.safetensors", whose == RowsOf::kModel ? "rank" : "critic",
                     rank, world);
}

std::string checkpoint_hash_key(const std::string& kind, const ParameterSpec& parameter) {
  return fmt::format("hash/{}/{}", kind, parameter.name());
}

std::string content_hash_text(const quant::ContentHash& hash) {
  return fmt::format("{:016x}{:016x}", hash.high, hash.low);
}

void write_row_file(const fs::path& path, const ShardLayout& layout, const OptimizerState& state) {
  const kernels::Serial serial;
  std::vector<StoredRows> stored;
  std::map<std::string, std::string> metadata;
  const std::vector<Array<uint16_t>> none;
  const auto arrays_of = [&](std::string_view kind, int64_t parameter) {
    const auto p = static_cast<size_t>(parameter);
    if (kind == "master") return rows_of(state.master, none, p);
    return kind == "m" ? rows_of(state.m, state.m_bf16, p) : rows_of(state.v, state.v_bf16, p);
  };
  for (const char* kind : {"m", "master", "v"}) {  // sorted
    for (int64_t p = 0; p < layout.table->size(); ++p) {
      const ParameterSpec& whole = layout.table->at(p);
      const RowShard shard = layout.trained(p);
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
  for (size_t p = 0; p < state.held_scale.size(); ++p) {
    const ParameterSpec& whole = layout.table->at(static_cast<int64_t>(p));
    const RowShard shard = layout.shard(static_cast<int64_t>(p));
    const Array<uint16_t>& scale = state.held_scale[p];
    if (scale.empty()) continue;
    const int64_t groups_per_row = whole.cols / layout.plan.config.group_size;
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
  SafetensorsWriter writer(path, infos, metadata);
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

RowFiles::RowFiles(const fs::path& checkpoint, RowsOf whose, int world) : checkpoint_(checkpoint) {
  for (int rank = 0; rank < world; ++rank) {
    files_.emplace_back(checkpoint / row_file_name(whose, rank, world));
  }
}

RowShard RowFiles::rows_in_file(const SafetensorsFile& file, const Slices& slices,
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

void RowFiles::check_hash(const SafetensorsFile& file, const Slices& slices,
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
      file.path().string(), slices.kind, parameter.name(), checkpoint_.string());
}

void RowFiles::read_rows(const std::string& kind, const ParameterSpec& parameter, RowShard rows,
                         std::vector<float>& out) const {
  out.resize(static_cast<size_t>(rows.rows() * parameter.cols));
  read_slices({kind, DType::kF32, parameter.cols}, parameter, rows,
              std::as_writable_bytes(std::span(out)).data());
}

void RowFiles::read_scales(const ParameterSpec& parameter, int64_t groups_per_row, RowShard rows,
                           std::vector<uint16_t>& out) const {
  out.resize(static_cast<size_t>(rows.rows() * groups_per_row));
  read_slices({"scale", DType::kBf16, groups_per_row}, parameter, rows,
              std::as_writable_bytes(std::span(out)).data());
  check_held_scales("checkpoint '" + checkpoint_.string() + "'", parameter, rows.begin, out,
                    groups_per_row);
}

void RowFiles::read_slices(const Slices& slices, const ParameterSpec& spec, RowShard rows,
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
        checkpoint_.string(), copied, rows.begin, rows.end, name, rows.begin + copied,
        checkpoint_.string());
  }
}

}  // namespace nibble
