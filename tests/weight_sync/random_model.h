#pragma once

#include <cstdint>
#include <random>

#include "core/spec/mesh.h"
#include "core/spec/model_config.h"
#include "core/spec/parameters.h"
#include "core/spec/quantization.h"
#include "weight_sync/layout.h"
#include "weight_sync/manifest.h"

namespace nibble {

struct RandomModel {
  ModelConfig config;
  ParameterTable table;
  Manifest manifest;
};

/// Draws model shapes and layouts; the same seed draws the same.
class RandomModels {
 public:
  explicit RandomModels(uint32_t seed) : random_(seed) {}

  int64_t draw(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }

  ModelConfig config() {
    ModelConfig config;
    config.architecture = static_cast<Architecture>(draw(0, 2));
    config.vocab = draw(3, 200);
    config.hidden = 32 * draw(1, 4);
    config.intermediate = 32 * draw(1, 5);
    config.num_layers = draw(1, 3);
    config.num_kv_heads = draw(1, 2);
    config.num_heads = config.num_kv_heads * draw(1, 3);
    config.head_dim = 32 * draw(1, 2);
    config.tied_embeddings = draw(0, 1) == 1;
    config.qk_norm = config.architecture != Architecture::kLlama;
    for (int64_t i = 0; i < config.num_layers; ++i) {
      config.layer_is_moe.push_back(config.architecture == Architecture::kQwen3Moe &&
                                    draw(0, 3) > 0);
    }
    config.moe = {draw(2, 5), 2, 32 * draw(1, 3), true};
    return config;
  }

  RandomModel model() {
    RandomModel model{config(), {}, {}};
    model.table = model_parameters(model.config);
    const bool plain = draw(0, 4) == 0;
    const auto targets = static_cast<QuantTargets>(draw(0, 2));
    model.manifest =
        make_manifest(model.table, plain ? plan_bf16(model.table)
                                         : plan_quantization(model.table, targets, 4, 32));
    return model;
  }

  /// Of trainers, or of the ranks of an engine: any that can share the model.
  Mesh mesh(const ModelConfig& config, int most) {
    for (;;) {
      const Mesh mesh{static_cast<int>(draw(1, most)), static_cast<int>(draw(1, most)),
                      static_cast<int>(draw(1, most))};
      if (!mesh_problem(config, mesh)) return mesh;
    }
  }

  /// Every row is held by somebody; some by several.
  Layout layout(const Manifest& manifest, int world) {
    Layout layout;
    layout.ranks.resize(static_cast<size_t>(world));
    for (int64_t t = 0; t < manifest.size(); ++t) {
      const int64_t rows = manifest.at(t).rows;
      for (int64_t begin = 0; begin < rows;) {
        const int64_t end = draw(begin + 1, rows);
        rank(layout).push_back({t, begin, end});
        if (draw(0, 2) == 0) rank(layout).push_back({t, draw(0, begin), end});
        begin = end;
      }
    }
    return layout;
  }

 private:
  std::vector<Slice>& rank(Layout& layout) {
    return layout.ranks[static_cast<size_t>(draw(0, layout.world() - 1))];
  }
  std::mt19937 random_;
};

}  // namespace nibble
