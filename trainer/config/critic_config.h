#pragma once

#include <cstdint>
#include <filesystem>

#include "trainer/config/train_config.h"

namespace nibble {

/// Key `critic`: the value model of algorithm.advantage: gae.
struct CriticConfig {
  std::filesystem::path model;
  double lr = 1e-5;
  LrStyle schedule = LrStyle::kConstant;
  int64_t lr_warmup_steps = 0;
  int64_t decay_steps = 0;
  double min_lr = 0.0;
  double clip_norm = 1.0;
  double value_clip = 0.2;
  int64_t warmup_steps = 0;
};

template <typename Visitor>
void visit_fields(Visitor& v, CriticConfig& c) {
  v.field("model", c.model, "",
          "Hugging Face directory whose body it starts from, of the same tokenizer, any size; its "
          "head starts at zeros; empty: model.path");
  v.field("lr", c.lr, "", "learning rate after warm-up; what is not here is as in optimizer",
          AtLeast{0});
  v.field("schedule", c.schedule, "", "learning rate over time");
  v.field("lr_warmup_steps", c.lr_warmup_steps, "steps", "linear warm-up, in optimizer steps",
          AtLeast{0});
  v.field("decay_steps", c.decay_steps, "steps", "optimizer step at which min_lr is reached",
          AtLeast{0});
  v.field("min_lr", c.min_lr, "", "final learning rate", AtLeast{0});
  v.field("clip_norm", c.clip_norm, "", "global gradient norm; 0 = off", AtLeast{0});
  v.field("value_clip", c.value_clip, "",
          "a value may move so far from what it was before the rollout's updates", Above{0});
  v.field("warmup_steps", c.warmup_steps, "rollout steps",
          "the critic's first ones, in which it learns and the model does not", AtLeast{0});
}

/// AdamW of the critic: `optimizer` with the critic's learning rate and clipping.
inline OptimizerConfig critic_optimizer(const CriticConfig& critic, OptimizerConfig optimizer) {
  optimizer.lr = critic.lr;
  optimizer.schedule = critic.schedule;
  optimizer.warmup_steps = critic.lr_warmup_steps;
  optimizer.decay_steps = critic.decay_steps;
  optimizer.min_lr = critic.min_lr;
  optimizer.clip_norm = critic.clip_norm;
  return optimizer;
}

}  // namespace nibble
