#include "core/models/weights.h"

#include <algorithm>
#include <cstring>

#include "core/base/fail.h"
#include "core/kernels/quantize.h"
#include "core/models/checkpoint_tensors.h"
#include "core/quant/bf16.h"

namespace nibble {
namespace {

template <typename T>
Array<T> copy_elements(const TensorView& view) {
  auto values = Array<T>::uninitialized(view.bytes.size() / sizeof(T));
  std::memcpy(values.data(), view.bytes.data(), values.size() * sizeof(T));
  return values;
}

void check_stored_shape(const HfDirectory& directory, const ParameterSpec& parameter) {
  const TensorView shape = directory.tensor(parameter.module + ".weight_shape");
  int64_t rows = -1;
  int64_t cols = -1;
  if (shape.dtype == DType::kI64 && shape.bytes.size() == 16) {
    const auto values = copy_elements<int64_t>(shape);
    rows = values[0];
    cols = values[1];
  } else if (shape.dtype == DType::kI32 && shape.bytes.size() == 8) {
    const auto values = copy_elements<int32_t>(shape);
    rows = values[0];
    cols = values[1];
  }
  if (rows != parameter.rows || cols != parameter.cols) {
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}', tensor '{}.weight_shape' says [{}, {}], but config.json asks for [{}, "
         "{}]",
         directory.path().string(), parameter.module, rows, cols, parameter.rows, parameter.cols);
  }
}

void check_scales(const HfDirectory& directory, const ParameterSpec& parameter,
                  const Array<uint16_t>& scale, int64_t groups_per_row) {
  for (size_t i = 0; i < scale.size(); ++i) {
    if (quant::bf16_is_finite(scale[i])) continue;
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}', tensor '{}.weight_scale': row {}, group {} is NaN or infinite",
         directory.path().string(), parameter.module, static_cast<int64_t>(i) / groups_per_row,
         static_cast<int64_t>(i) % groups_per_row);
  }
}

// Refused at the door: one NaN weight may leave no trace in the results (a masked maximum drops
// it).
void check_finite(const HfDirectory& directory, const ParameterSpec& parameter,
                  std::span<const uint16_t> weight) {
  unsigned any_bad = 0;  // no branch: this reads every weight of a model
  for (const uint16_t bits : weight) any_bad |= quant::bf16_is_finite(bits) ? 0u : 1u;
  if (any_bad == 0) return;
  const auto bad = std::find_if_not(weight.begin(), weight.end(), quant::bf16_is_finite);
  const int64_t index = bad - weight.begin();
  fail(ErrorCode::kInvalidArgument, "checkpoint '{}', tensor '{}': row {}, column {} is {}",
       directory.path().string(), parameter.name(), index / parameter.cols, index % parameter.cols,
       (*bad & 0x7fu) == 0 ? "infinite" : "NaN");
}

template <typename T>
Array<T> rows_of(const Array<T>& values, int64_t row_elements, RowShard rows) {
  if (values.size() == 0) return Array<T>();
  const auto begin = values.data() + rows.begin * row_elements;
  return Array<T>(std::span<const T>(begin, static_cast<size_t>(rows.rows() * row_elements)));
}

// Array or vector.
template <typename Elements>
Elements load_plain(const HfDirectory& directory, const ParameterSpec& parameter, Elements into) {
  const TensorView view = directory.tensor(parameter.name(), DType::kBf16, stored_shape(parameter));
  std::memcpy(into.data(), view.bytes.data(), view.bytes.size());
  check_finite(directory, parameter, {into.data(), into.size()});
  return into;
}

// Codes of eight bits are run as the BF16 weights that they stand for: the same w', to the bit.
QuantizationPlan resident_plan(const QuantizationPlan& stored, const ParameterTable& table) {
  return stored.any() && stored.config.bits == 8 ? plan_bf16(table) : stored;
}

StoredParameter load_stored(const HfDirectory& directory, const ParameterSpec& parameter,
                            const QuantizationPlan& plan, bool quantized) {
  StoredParameter stored;
  if (quantized && plan.config.bits == 8) {
    stored.bf16 = Array<uint16_t>(std::span<const uint16_t>(load_bf16(directory, parameter)));
    return stored;
  }
  if (quantized) return load_packed(directory, parameter, plan.config);
  stored.bf16 =
      load_plain(directory, parameter,
                 Array<uint16_t>::uninitialized(static_cast<size_t>(parameter.num_elements())));
  return stored;
}

}  // namespace

kernels::WeightView StoredParameter::view(const ParameterSpec& spec, const QuantizationPlan& plan,
                                          bool quantized) const {
  if (!quantized) {
    return {kernels::WeightFormat::kBf16, bf16.data(), nullptr, spec.rows, spec.cols, 0};
  }
  return {kernels::WeightFormat::kInt4, words.data(), scale.data(), spec.rows, spec.cols,
          plan.config.group_size};
}

StoredParameter StoredParameter::make(const ParameterSpec& spec, int64_t rows,
                                      const QuantizationPlan& plan, bool quantized,
                                      DeviceKind device) {
  const auto count = static_cast<size_t>(rows * spec.cols);
  if (!quantized) {
    return {Array<uint16_t>(count, device), Array<uint32_t>(device), Array<uint16_t>(device)};
  }
  return {Array<uint16_t>(device), Array<uint32_t>(count / 8, device),
          Array<uint16_t>(count / static_cast<size_t>(plan.config.group_size), device)};
}

StoredParameter StoredParameter::rows(const ParameterSpec& spec, const QuantizationPlan& plan,
                                      RowShard rows) const {
  const int64_t groups = words.size() == 0 ? 0 : spec.cols / plan.config.group_size;
  return {rows_of(bf16, spec.cols, rows), rows_of(words, spec.cols / 8, rows),
          rows_of(scale, groups, rows)};
}

StoredParameter StoredParameter::to(DeviceKind device) const {
  return {bf16.to(device), words.to(device), scale.to(device)};
}

ResidentWeights::ResidentWeights(const ParameterTable& table, QuantizationPlan plan,
                                 DeviceKind device, Holding holding)
    : table_(table), plan_(std::move(plan)), device_(device) {
  if (plan_.any() && plan_.config.bits != 4) {
    fail(ErrorCode::kUnimplemented,
         "weights of {} bits cannot be trained or served packed; use W4A16 (`nibble convert "
         "--quant-type W4A16`)",
         plan_.config.bits);
  }
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& parameter = table.at(i);
    const bool is_held = holding == Holding::kAll || !parameter.is_frozen;
    stored_.push_back(StoredParameter::make(parameter, is_held ? parameter.rows : 0, plan_,
                                            plan_.quantized[static_cast<size_t>(i)], device));
  }
}

ResidentWeights::ResidentWeights(const ParameterTable& table, QuantizationPlan plan,
                                 SharedPacking packing, DeviceKind device)
    : table_(table), plan_(std::move(plan)), device_(device), shared_(std::move(packing)) {
  NIBBLE_CHECK(std::ssize(*shared_) == table.size(), "{} packed parameters for a model of {}",
               shared_->size(), table.size());
}

StoredParameter& ResidentWeights::stored(int64_t parameter) {
  NIBBLE_CHECK(shared_ == nullptr, "weights of another owner are written to");
  return stored_[static_cast<size_t>(parameter)];
}

kernels::WeightView ResidentWeights::weight(int64_t parameter) const {
  return stored(parameter).view(table_.at(parameter), plan_,
                                plan_.quantized[static_cast<size_t>(parameter)]);
}

float* ResidentWeights::grad(int64_t parameter) {
  return grads_.empty() ? nullptr : grads_[static_cast<size_t>(parameter)].data();
}

void ResidentWeights::enable_gradients() {
  grads_.clear();
  for (const ParameterSpec& parameter : table_.parameters) {
    grads_.emplace_back(static_cast<size_t>(parameter.num_elements()), device_);
  }
}

int64_t ResidentWeights::num_bytes() const {
  int64_t bytes = 0;
  for (const StoredParameter& p : all_stored()) {
    bytes += static_cast<int64_t>(p.bf16.size() * 2 + p.words.size() * 4 + p.scale.size() * 2);
  }
  return bytes;
}

std::unique_ptr<ResidentWeights> ResidentWeights::to(DeviceKind device) const {
  auto copy = std::make_unique<ResidentWeights>(table_, plan_, device);
  for (size_t i = 0; i < copy->stored_.size(); ++i) copy->stored_[i] = all_stored()[i].to(device);
  return copy;
}

QuantizationPlan checkpoint_plan(const Json& config, const std::string& what,
                                 const ParameterTable& table) {
  const auto quantization = parse_quantization_config(config, what);
  return quantization ? plan_from_config(table, *quantization) : plan_bf16(table);
}

QuantizationPlan checkpoint_plan(const HfDirectory& directory, const ParameterTable& table) {
  return checkpoint_plan(directory.config(), (directory.path() / "config.json").string(), table);
}

std::unique_ptr<ResidentWeights> load_weights(const HfDirectory& directory,
                                              const ParameterTable& table) {
  const QuantizationPlan plan = checkpoint_plan(directory, table);
  check_checkpoint_tensors(directory, table, plan);
  auto weights = std::make_unique<ResidentWeights>(table, resident_plan(plan, table));
  for (int64_t i = 0; i < table.size(); ++i) {
    weights->stored(i) =
        load_stored(directory, table.at(i), plan, plan.quantized[static_cast<size_t>(i)]);
  }
  return weights;
}

std::unique_ptr<ResidentWeights> load_rank_weights(const HfDirectory& directory,
                                                   const ParameterTable& table,
                                                   const ParameterTable& held, const Mesh& mesh,
                                                   int rank) {
  const QuantizationPlan plan = checkpoint_plan(directory, table);
  check_checkpoint_tensors(directory, table, plan);
  auto weights = std::make_unique<ResidentWeights>(held, resident_plan(plan, table));
  for (int64_t i = 0; i < table.size(); ++i) {
    const RowShard rows = used_rows(table, i, mesh, rank);
    if (rows.rows() == 0) continue;
    StoredParameter whole =
        load_stored(directory, table.at(i), plan, plan.quantized[static_cast<size_t>(i)]);
    const bool is_all = rows.rows() == table.at(i).rows;
    weights->stored(i) = is_all ? std::move(whole) : whole.rows(table.at(i), weights->plan(), rows);
  }
  return weights;
}

std::unique_ptr<ResidentWeights> rank_weights(const ResidentWeights& whole,
                                              const ParameterTable& table,
                                              const ParameterTable& held, const Mesh& mesh,
                                              int rank) {
  auto weights = std::make_unique<ResidentWeights>(held, whole.plan());
  for (int64_t i = 0; i < table.size(); ++i) {
    weights->stored(i) =
        whole.stored(i).rows(table.at(i), whole.plan(), used_rows(table, i, mesh, rank));
  }
  return weights;
}

StoredParameter load_packed(const HfDirectory& directory, const ParameterSpec& parameter,
                            const QuantizationConfig& config) {
  const int64_t groups_per_row = parameter.cols / config.group_size;
  for (const char* suffix : {".weight_zero_point", ".weight_g_idx"}) {
    if (directory.contains(parameter.module + suffix)) {
      fail(ErrorCode::kUnimplemented,
           "checkpoint '{}' has '{}{}': zero points and act-order indices are not supported",
           directory.path().string(), parameter.module, suffix);
    }
  }
  check_stored_shape(directory, parameter);
  StoredParameter out;
  out.words = copy_elements<uint32_t>(
      directory.tensor(parameter.module + ".weight_packed", DType::kI32,
                       {parameter.rows, parameter.cols * config.bits / 32}));
  out.scale = copy_elements<uint16_t>(directory.tensor(
      parameter.module + ".weight_scale", DType::kBf16, {parameter.rows, groups_per_row}));
  check_scales(directory, parameter, out.scale, groups_per_row);
  return out;
}

std::vector<uint16_t> load_bf16(const HfDirectory& directory, const ParameterSpec& parameter) {
  if (directory.contains(parameter.name())) {
    return load_plain(directory, parameter,
                      std::vector<uint16_t>(static_cast<size_t>(parameter.num_elements())));
  }
  const auto config =
      parse_quantization_config(directory.config(), (directory.path() / "config.json").string());
  if (!config) {
    fail(ErrorCode::kNotFound, "checkpoint '{}' has no tensor '{}'", directory.path().string(),
         parameter.name());
  }
  const StoredParameter packed = load_packed(directory, parameter, *config);
  std::vector<int8_t> code(static_cast<size_t>(parameter.num_elements()));
  quant::unpack_rows(packed.words.data(), parameter.rows, parameter.cols, config->bits,
                     code.data());
  std::vector<uint16_t> weight(code.size());
  quant::dequantize_rows(code.data(), packed.scale.data(),
                         {parameter.rows, parameter.cols, config->group_size}, weight.data());
  return weight;
}

std::span<const uint16_t> mapped_bf16(const HfDirectory& directory,
                                      const ParameterSpec& parameter) {
  if (!directory.contains(parameter.name())) return {};
  const TensorView view = directory.tensor(parameter.name(), DType::kBf16, stored_shape(parameter));
  if (reinterpret_cast<uintptr_t>(view.bytes.data()) % alignof(uint16_t) != 0) return {};
  return {reinterpret_cast<const uint16_t*>(view.bytes.data()),
          view.bytes.size() / sizeof(uint16_t)};
}

void quantize_parameter(const ParameterSpec& parameter, const float* master,
                        const QuantizationPlan& plan, const kernels::Parallel& parallel,
                        StoredParameter& out) {
  const quant::GroupShape shape{parameter.rows, parameter.cols, plan.config.group_size};
  out.words.resize(static_cast<size_t>(shape.rows * shape.cols / 8));
  out.scale.resize(static_cast<size_t>(shape.rows * shape.groups_per_row()));
  const auto problem =
      kernels::quantize_pack_int4(master, shape, out.words.data(), out.scale.data(), parallel);
  if (problem) {
    fail(ErrorCode::kInvalidArgument, "tensor '{}', row {}, group {}: {}", parameter.name(),
         problem->row, problem->group, quant::problem_text(problem->kind));
  }
}

std::unique_ptr<ResidentWeights> load_weights_quantized(const HfDirectory& directory,
                                                        const ParameterTable& table,
                                                        const QuantizationPlan& plan,
                                                        const kernels::Parallel& parallel) {
  check_checkpoint_tensors(directory, table, checkpoint_plan(directory, table));
  auto weights = std::make_unique<ResidentWeights>(table, plan);
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& parameter = table.at(i);
    std::vector<uint16_t> bf16 = load_bf16(directory, parameter);
    if (!plan.quantized[static_cast<size_t>(i)]) {
      weights->stored(i).bf16 = Array<uint16_t>(std::span<const uint16_t>(bf16));
      continue;
    }
    std::vector<float> master(bf16.size());
    for (size_t j = 0; j < bf16.size(); ++j) master[j] = quant::bf16_to_float(bf16[j]);
    quantize_parameter(parameter, master.data(), plan, parallel, weights->stored(i));
  }
  return weights;
}

}  // namespace nibble
