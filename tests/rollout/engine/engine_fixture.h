#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/models/weights.h"
#include "core/quant/bf16.h"
#include "rollout/engine/engine.h"

namespace nibble {

/// A source that somebody else keeps alive.
inline std::shared_ptr<const ops::WeightSource> borrowed(const ops::WeightSource& weights) {
  return {std::shared_ptr<void>(), &weights};
}

inline void submit_all(Engine& engine, std::vector<GenerateRequest> requests) {
  if (engine.submit(std::move(requests)) != SubmitOutcome::kAccepted) {
    throw std::runtime_error("queue full");
  }
}

inline void submit_one(Engine& engine, GenerateRequest request) {
  std::vector<GenerateRequest> one;
  one.push_back(std::move(request));
  submit_all(engine, std::move(one));
}

/// Runs until nothing is left; completions by rising id.
inline std::vector<Completion> finish_all(Engine& engine) {
  while (engine.has_work()) engine.step();
  std::vector<Completion> done = engine.take_finished();
  std::sort(done.begin(), done.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return done;
}

/// A decoder with random BF16 weights: `vocab` tokens, one layer, logits a few units apart.
struct RandomModel {
  explicit RandomModel(int64_t vocab, unsigned seed = 1)
      : spec(make_model_spec(config(vocab))), weights(spec.table, plan_bf16(spec.table)) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (int64_t p = 0; p < spec.table.size(); ++p) {
      const float scale = p == spec.table.lm_head        ? 0.25f
                          : spec.table.at(p).is_vector() ? 0.1f
                                                         : 0.3f;
      const float center = spec.table.at(p).is_vector() ? 1.0f : 0.0f;
      for (uint16_t& bits : weights.stored(p).bf16) {
        bits = quant::float_to_bf16(center + scale * normal(generator));
      }
    }
  }
  static ModelConfig config(int64_t vocab) {
    ModelConfig c;
    c.vocab = vocab;
    c.hidden = 32;
    c.intermediate = 48;
    c.num_layers = 1;
    c.num_heads = 2;
    c.num_kv_heads = 1;
    c.head_dim = 16;
    c.max_position = 256;
    c.layer_is_moe = {false};
    return c;
  }

  ModelSpec spec;
  ResidentWeights weights;
};

}  // namespace nibble
