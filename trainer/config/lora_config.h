#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "core/config/fields.h"
#include "core/spec/lora_shape.h"

namespace nibble {

constexpr std::array<EnumName<LoraTargets>, 3> enum_names(LoraTargets) {
  return {{{LoraTargets::kAttention, "attention"},
           {LoraTargets::kMlp, "mlp"},
           {LoraTargets::kLinear, "linear"}}};
}

/// Key `lora`: adapters that are trained beside weights that stay as they are.
struct LoraSection {
  int64_t rank = 0;
  std::optional<double> alpha;
  LoraTargets targets = LoraTargets::kLinear;

  /// Nothing: all weights are trained.
  std::optional<LoraShape> shape() const {
    if (rank == 0) return std::nullopt;
    return LoraShape{rank, alpha.value_or(2.0 * static_cast<double>(rank)), targets};
  }
};

template <typename Visitor>
void visit_fields(Visitor& v, LoraSection& c) {
  v.field("rank", c.rank, "",
          "of adapters, which alone are trained, at optimizer.lr: a multiple of 32; 0: all weights "
          "are",
          Range{0, kMaxLoraRank});
  v.field("alpha", c.alpha, "",
          "what an adapter adds is scaled by alpha / rank, as in PEFT; unset: 2 x rank", Above{0});
  v.field("targets", c.targets, "",
          "matrices that get one: attention (q, k, v, o), mlp (gate, up, down of dense MLPs), "
          "linear (both); experts never");
}

}  // namespace nibble
