#include "core/spec/lora_shape.h"

#include <cmath>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr LoraTargets kAllTargets[] = {LoraTargets::kAttention, LoraTargets::kMlp,
                                       LoraTargets::kLinear};

[[noreturn]] void refuse(const std::string& what, const char* field, const Json& object,
                         const char* wanted) {
  fail(ErrorCode::kInvalidArgument, "{}: {}.{} = {}; want {}", what, kLoraKey, field,
       object.value(field, Json(nullptr)).dump(), wanted);
}

}  // namespace

std::string_view lora_targets_name(LoraTargets targets) {
  switch (targets) {
    case LoraTargets::kAttention:
      return "attention";
    case LoraTargets::kMlp:
      return "mlp";
    case LoraTargets::kLinear:
      return "linear";
  }
  return "unknown";
}

LoraShape parse_lora_shape(const Json& object, const std::string& what) {
  if (!object.is_object()) {
    fail(ErrorCode::kInvalidArgument, "{}: {} is not an object", what, kLoraKey);
  }
  LoraShape shape;
  const Json rank = object.value("rank", Json(nullptr));
  if (rank.is_number_integer()) shape.rank = rank.get<int64_t>();
  if (shape.rank < 1 || shape.rank > kMaxLoraRank || shape.rank % kLoraRankMultiple != 0) {
    refuse(what, "rank", object, "a multiple of 32, at most 4096");
  }
  const Json alpha = object.value("alpha", Json(nullptr));
  if (alpha.is_number()) shape.alpha = alpha.get<double>();
  if (!(shape.alpha > 0.0) || !std::isfinite(shape.alpha)) {
    refuse(what, "alpha", object, "a number > 0");
  }
  const Json targets = object.value("targets", Json(nullptr));
  for (const LoraTargets one : kAllTargets) {
    if (targets != lora_targets_name(one)) continue;
    shape.targets = one;
    return shape;
  }
  refuse(what, "targets", object, "attention, mlp or linear");
}

OrderedJson lora_shape_json(const LoraShape& shape) {
  return {{"rank", shape.rank},
          {"alpha", shape.alpha},
          {"targets", std::string(lora_targets_name(shape.targets))}};
}

}  // namespace nibble
