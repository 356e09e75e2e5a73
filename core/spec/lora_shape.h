#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/json.h"

namespace nibble {

/// Which matrices of the decoder layers get adapters: q, k, v and o; gate, up and down of dense
/// MLPs; both. Experts and routers never.
enum class LoraTargets { kAttention, kMlp, kLinear };
std::string_view lora_targets_name(LoraTargets targets);

/// Low-rank adapters beside frozen matrices (LoRA, https://arxiv.org/abs/2106.09685, eq. 3):
/// y = x W^T + (scale * (x A^T)) B^T with A [rank, in], B [out, rank] and scale = alpha / rank.
struct LoraShape {
  int64_t rank = 0;
  double alpha = 0.0;
  LoraTargets targets = LoraTargets::kLinear;

  float scale() const { return static_cast<float>(alpha / static_cast<double>(rank)); }
  friend bool operator==(const LoraShape&, const LoraShape&) = default;
};

/// What a rank is a multiple of: input features that the CUDA kernels take at once.
constexpr int64_t kLoraRankMultiple = 32;
constexpr int64_t kMaxLoraRank = 4096;

/// Key of a config.json of a model with adapters. Only Nibble's training checkpoints have it.
constexpr const char* kLoraKey = "nibble_lora";

/// `rank`, `alpha` and `targets` of that key's object. Throws Error{kInvalidArgument} naming `what`
/// and the field.
LoraShape parse_lora_shape(const Json& object, const std::string& what);
/// The object that parse_lora_shape() reads.
OrderedJson lora_shape_json(const LoraShape& shape);

}  // namespace nibble
