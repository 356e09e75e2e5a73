#include "core/models/checkpoint_tensors.h"

#include <set>
#include <string>

#include "core/base/fail.h"

namespace nibble {
namespace {

// The names under which one parameter is stored. Zero points and act-order indices have a place
// here: that they are not supported is the loader's to say.
std::vector<std::string> stored_names(const ParameterSpec& parameter, bool is_quantized) {
  if (!is_quantized) return {parameter.name()};
  std::vector<std::string> names;
  for (const char* suffix : {".weight_packed", ".weight_scale", ".weight_shape",
                             ".weight_zero_point", ".weight_g_idx"}) {
    names.push_back(parameter.module + suffix);
  }
  return names;
}

void refuse_others(const HfDirectory& directory, const std::set<std::string>& known) {
  for (const TensorInfo& info : directory.tensors()) {
    if (known.contains(info.name) || info.name.ends_with(".rotary_emb.inv_freq")) continue;
    fail(ErrorCode::kInvalidArgument,
         "checkpoint '{}' holds tensor '{}', which its config.json has no place for: the model "
         "would not be the one that was saved; correct config.json",
         directory.path().string(), info.name);
  }
}

}  // namespace

std::vector<int64_t> stored_shape(const ParameterSpec& parameter) {
  return parameter.is_vector() ? std::vector{parameter.cols}
                               : std::vector{parameter.rows, parameter.cols};
}

void check_checkpoint_tensors(const HfDirectory& directory, const ParameterTable& table,
                              const QuantizationPlan& plan, StoredTypes types) {
  std::set<std::string> known;
  if (table.lm_head == table.embedding) known.insert("lm_head.weight");
  for (int64_t i = 0; i < table.size(); ++i) {
    const ParameterSpec& p = table.at(i);
    const bool is_quantized = plan.quantized[static_cast<size_t>(i)];
    const std::vector<std::string> names = stored_names(p, is_quantized);
    known.insert(names.begin(), names.end());
    if (!directory.contains(names[0])) {
      fail(ErrorCode::kNotFound,
           "checkpoint '{}' has no tensor '{}', which its config.json asks for: a file is missing, "
           "or config.json is another model's",
           directory.path().string(), names[0]);
    }
    const DType dtype = types == StoredTypes::kAny ? directory.tensor(names[0]).dtype
                        : is_quantized             ? DType::kI32
                                                   : DType::kBf16;
    const std::vector<int64_t> shape =
        is_quantized ? std::vector{p.rows, p.cols * plan.config.bits / 32} : stored_shape(p);
    (void)directory.tensor(names[0], dtype, shape);
  }
  refuse_others(directory, known);
}

}  // namespace nibble
