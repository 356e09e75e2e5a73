#include "convert/staged_layers.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>

#include "convert/token_rows.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/quant/rows.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxIdentityBytes = 64 << 20;
constexpr int64_t kRowGrain = 64;
const char* const kReport = "report";

StoredParameter pack(const QuantizedMatrix& quantized, int bits,
                     const kernels::Parallel& parallel) {
  const at::Tensor code = quantized.code.cpu();
  const at::Tensor scale = quantized.scale.cpu();
  const int64_t rows = code.size(0), cols = code.size(1), words = cols * bits / 32;
  StoredParameter out;
  out.words.resize(static_cast<size_t>(rows * words));
  parallel.run(rows, kRowGrain, [&](int64_t begin, int64_t end) {
    quant::pack_rows(code.const_data_ptr<int8_t>() + begin * cols, end - begin, cols, bits,
                     out.words.data() + begin * words);
  });
  out.scale.resize(static_cast<size_t>(scale.numel()));
  std::memcpy(out.scale.data(), scale.const_data_ptr(), static_cast<size_t>(out.scale.num_bytes()));
  return out;
}

template <typename T>
Array<T> elements_of(const TensorView& view) {
  auto out = Array<T>::uninitialized(view.bytes.size() / sizeof(T));
  std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
  return out;
}

std::string packed_name(const ParameterSpec& p) { return p.module + ".weight_packed"; }
std::string scale_name(const ParameterSpec& p) { return p.module + ".weight_scale"; }

ConvertedMatrix report_of(const ParameterSpec& spec, const LayerMatrix& matrix) {
  ConvertedMatrix report{spec.module, spec.rows, spec.cols, matrix.weight_error, std::nullopt};
  if (matrix.dampening > 0.0) {
    report.calibration = {matrix.output_error, matrix.nearest_output_error, matrix.dampening,
                          recovery_name(matrix.recovery), matrix.elapsed_ms};
  }
  return report;
}

bool is_unnamed(const fs::path& path) {
  return path.filename().string().find(".tmp.") != std::string::npos;
}

// What a killed run was writing: files without their names yet, and a file of activations between
// its creation and its removal.
void sweep(const fs::path& directory) {
  for (const fs::path& place : {directory, directory / "layers"}) {
    if (!fs::exists(place)) continue;
    std::vector<fs::path> leftover;
    for (const auto& entry : fs::directory_iterator(place)) {
      if (is_unnamed(entry.path()) || entry.path().filename() == kActivationsFile) {
        leftover.push_back(entry.path());
      }
    }
    for (const fs::path& path : leftover) fs::remove(path);
  }
}

}  // namespace

void claim_conversion(const fs::path& directory, const OrderedJson& identity) {
  const fs::path path = directory / "conversion.json";
  if (!fs::exists(path)) {
    // Nothing durable precedes this file, and of what is made only config.json and what stands
    // beside it outlive it.
    const bool is_ours = fs::exists(directory / "config.json") ||
                         std::all_of(fs::directory_iterator(directory), fs::directory_iterator(),
                                     [](const auto& entry) { return is_unnamed(entry.path()); });
    if (!is_ours) {
      fail(ErrorCode::kInvalidArgument,
           "'{}' holds files, and no conversion.json: no conversion left it; move it away",
           directory.string());
    }
    for (const auto& entry : fs::directory_iterator(directory)) fs::remove_all(entry.path());
    write_file_atomically(path, identity.dump(2) + "\n");
    return;
  }
  const OrderedJson before = parse_ordered_json(read_file(path, kMaxIdentityBytes), path.string());
  for (const auto& [key, value] : identity.items()) {
    if (before.contains(key) && before[key] == value) continue;
    fail(ErrorCode::kInvalidArgument,
         "'{}' was left by another conversion: its {} is {}, now it is {}; remove it to start over",
         directory.string(), key,
         before.contains(key) ? before[key].dump().substr(0, 200) : "not there",
         value.dump().substr(0, 200));
  }
  sweep(directory);
}

StagedLayers::StagedLayers(fs::path directory, const ParameterTable& table,
                           const QuantizationPlan& plan)
    : directory_(std::move(directory)), table_(table), plan_(plan) {
  fs::create_directories(directory_);
}

fs::path StagedLayers::path_of(int64_t layer) const {
  return directory_ / fmt::format("layer-{:05}.safetensors", layer);
}

const SafetensorsFile& StagedLayers::file_of(int64_t layer) const {
  if (open_layer_ != layer) {
    open_file_.emplace(path_of(layer));
    open_layer_ = layer;
  }
  return *open_file_;
}

std::vector<int64_t> StagedLayers::quantized_of(int64_t layer) const {
  std::vector<int64_t> parameters;
  for (int64_t p = 0; p < table_.size(); ++p) {
    if (table_.at(p).layer == layer && plan_.quantized[static_cast<size_t>(p)]) {
      parameters.push_back(p);
    }
  }
  return parameters;
}

void StagedLayers::put(int64_t layer, std::span<const LayerMatrix> matrices,
                       const kernels::Parallel& parallel) {
  std::vector<TensorInfo> tensors;
  OrderedJson reports = OrderedJson::array();
  for (const LayerMatrix& matrix : matrices) {
    const ParameterSpec& p = table_.at(matrix.parameter);
    tensors.push_back({packed_name(p), DType::kI32, {p.rows, p.cols * plan_.config.bits / 32}});
    tensors.push_back({scale_name(p), DType::kBf16, {p.rows, p.cols / plan_.config.group_size}});
    reports.push_back(to_json(report_of(p, matrix)));
  }
  SafetensorsWriter writer(path_of(layer), tensors, {{kReport, reports.dump()}});
  for (const LayerMatrix& matrix : matrices) {
    const ParameterSpec& p = table_.at(matrix.parameter);
    const StoredParameter packed = pack(matrix.quantized, plan_.config.bits, parallel);
    writer.write(packed_name(p), std::as_bytes(std::span(packed.words)));
    writer.write(scale_name(p), std::as_bytes(std::span(packed.scale)));
  }
  writer.finish();
}

StoredParameter StagedLayers::packed(int64_t parameter) const {
  const ParameterSpec& p = table_.at(parameter);
  const SafetensorsFile& file = file_of(p.layer);
  StoredParameter out;
  out.words = elements_of<uint32_t>(file.tensor(packed_name(p)));
  out.scale = elements_of<uint16_t>(file.tensor(scale_name(p)));
  const int64_t words = p.cols * plan_.config.bits / 32, groups = p.cols / plan_.config.group_size;
  if (std::ssize(out.words) != p.rows * words || std::ssize(out.scale) != p.rows * groups) {
    fail(ErrorCode::kDataLoss, "'{}': '{}' has another shape", path_of(p.layer).string(), p.module);
  }
  return out;
}

void StagedLayers::restore(int64_t layer, LayerWeights& weights,
                           const ops::Backend& backend) const {
  for (const int64_t parameter : quantized_of(layer)) {
    const ParameterSpec& p = table_.at(parameter);
    const StoredParameter stored = packed(parameter);
    std::vector<int8_t> code(static_cast<size_t>(p.num_elements()));
    quant::unpack_rows(stored.words.data(), p.rows, p.cols, plan_.config.bits, code.data());
    std::vector<uint16_t> rounded(code.size());
    quant::dequantize_rows(code.data(), stored.scale.data(),
                           {p.rows, p.cols, plan_.config.group_size}, rounded.data());
    weights.replace(
        parameter,
        at::from_blob(rounded.data(), {p.rows, p.cols}, at::TensorOptions().dtype(at::kBFloat16))
            .to(backend.options().device(), at::kBFloat16, /*non_blocking=*/false,
                /*copy=*/true));
  }
}

std::vector<ConvertedMatrix> StagedLayers::reports() const {
  std::vector<ConvertedMatrix> all;
  for (int64_t layer = 0; layer < std::ssize(table_.layers); ++layer) {
    const SafetensorsFile& file = file_of(layer);
    const auto found = file.metadata().find(kReport);
    const std::string what = file.path().string();
    if (found == file.metadata().end()) fail(ErrorCode::kDataLoss, "'{}' has no report", what);
    for (const Json& matrix : parse_json(found->second, what)) {
      all.push_back(parse_converted_matrix(matrix, what));
    }
  }
  return all;
}

}  // namespace nibble
