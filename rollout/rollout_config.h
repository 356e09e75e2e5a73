#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/config/fields.h"
#include "core/config/limits.h"
#include "core/config/rollout_schedule.h"
#include "core/spec/mesh.h"
#include "rollout/engine/engine_config.h"

namespace nibble {

constexpr std::array<EnumName<KvPolicy>, 3> enum_names(KvPolicy) {
  return {{{KvPolicy::kKeep, "keep"},
           {KvPolicy::kRecompute, "recompute"},
           {KvPolicy::kAbort, "abort"}}};
}

/// Key `rollout`: what is sampled, and the engine's sizes.
struct RolloutConfig {
  int64_t prompts_per_step = 8;
  int64_t samples_per_prompt = 8;
  RolloutSchedule schedule = RolloutSchedule::kSync;
  std::optional<int64_t> max_staleness;
  int64_t oversample = 0;
  DynamicFilter dynamic_filter = DynamicFilter::kNone;
  bool partial_rollout = false;
  int64_t max_new_tokens = 64;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 0;
  std::vector<std::string> stop;
  bool quantize = true;
  int64_t tensor = 1;
  int64_t expert = 1;
  int64_t max_running = 64;
  int64_t max_step_tokens = 256;
  int64_t kv_tokens = 16384;
  double memory_fraction = 0.7;
  int64_t graph_max_batch = 256;
  int64_t max_positions = 2048;
  int64_t max_draft_tokens = 0;
  bool draft_adapts = true;
  std::filesystem::path draft_model;
  std::string draft_head;
  bool train_draft_head = false;
  KvPolicy kv_policy = KvPolicy::kKeep;
  int64_t timeout_ms = 600'000;

  /// Optimizer steps that the weights of a trained token may trail: max_staleness, or by schedule.
  int64_t staleness_limit() const {
    if (max_staleness) return *max_staleness;
    if (schedule == RolloutSchedule::kAsync) return 2;
    return schedule == RolloutSchedule::kOneStepOff || partial_rollout ? 1 : 0;
  }
  /// Groups that are drawn at a time, or wait to be trained on.
  int64_t groups_in_flight() const {
    if (schedule != RolloutSchedule::kAsync) return std::max(oversample, prompts_per_step);
    return oversample == 0 ? (staleness_limit() + 1) * prompts_per_step : oversample;
  }
};

/// How the rollout workers of one engine share the model.
inline Mesh engine_mesh(const RolloutConfig& c) {
  return {static_cast<int>(c.tensor), static_cast<int>(c.tensor), static_cast<int>(c.expert)};
}

template <typename Visitor>
void visit_fields(Visitor& v, RolloutConfig& c) {
  v.field("prompts_per_step", c.prompts_per_step, "prompts", "prompts of one rollout step",
          AtLeast{1});
  v.field("samples_per_prompt", c.samples_per_prompt, "samples", "responses sampled from a prompt",
          AtLeast{1});
  v.field(
      "schedule", c.schedule, "",
      "sync: sample, then train; one_step_off: the next step's samples are drawn while this one "
      "trains; async: engines draw all the time, also while weights change");
  v.field("max_staleness", c.max_staleness, "steps",
          "the weights that drew a token may be so many steps older than the newest; samples that "
          "are older still are dropped and counted; default: sync 0, with partial_rollout 1, "
          "one_step_off 1, async 2",
          Range{0, 64});
  v.field(
      "oversample", c.oversample, "prompts",
      "prompts that are sampled at a time: the first prompts_per_step groups that are whole are "
      "trained on, the others end, or go on in the next step (partial_rollout, async); 0: "
      "prompts_per_step",
      AtLeast{0});
  v.field("dynamic_filter", c.dynamic_filter, "",
          "nonzero_std: groups whose rewards are all equal teach nothing and are replaced by those "
          "of further prompts");
  v.field("partial_rollout", c.partial_rollout, "",
          "samples that a step does not wait for (oversample) go on in the next step, with its "
          "weights");
  v.field("max_new_tokens", c.max_new_tokens, "tokens", "longest response", AtLeast{1});
  v.field("temperature", c.temperature, "", "sampling temperature", Above{0});
  v.field("top_p", c.top_p, "", "nucleus of the distribution that may be drawn; 1 = all",
          Range{0.000001, 1});
  v.field("top_k", c.top_k, "tokens", "most likely tokens that may be drawn; 0 = all", AtLeast{0});
  v.field("stop", c.stop, "", "strings that end a response, besides the model's end tokens");
  v.field("quantize", c.quantize, "",
          "serve INT4 weights; false with qat.enabled: false is a BF16 run");
  v.field("tensor", c.tensor, "ranks",
          "rollout workers that compute one engine's steps together, each with its heads and rows: "
          "for models that do not fit one; samples keep the bits of one",
          Range{1, 64});
  v.field("expert", c.expert, "ranks",
          "1, or rollout.tensor: each of them then holds its part of a layer's experts",
          Range{1, 64});
  v.field("max_running", c.max_running, "sequences", "sequences that decode together", AtLeast{1});
  v.field("max_step_tokens", c.max_step_tokens, "tokens", "tokens an engine step computes",
          AtLeast{1});
  v.field("kv_tokens", c.kv_tokens, "tokens",
          "capacity of the KV cache; 0, on a GPU: what memory_fraction leaves", AtLeast{0});
  v.field(
      "memory_fraction", c.memory_fraction, "",
      "of the GPU memory that is free at the start, for the engine in all (kv_tokens: 0); workers "
      "that share a GPU share it too",
      Range{0.01, 1});
  v.field("graph_max_batch", c.graph_max_batch, "sequences",
          "largest decode batch captured as a CUDA graph (1, 2, 4, 8, then every 8); 0: none",
          Range{0, 4096});
  v.field("max_positions", c.max_positions, "tokens", "longest prompt and response together",
          AtLeast{2});
  v.field("max_draft_tokens", c.max_draft_tokens, "tokens",
          "tokens of a sample that a step may guess ahead and check (speculation, from the prompt, "
          "sibling samples and earlier epochs); samples stay as they are, and only what pays is "
          "guessed; 0: none",
          Range{0, 64});
  v.field("draft_adapts", c.draft_adapts, "",
          "guess only what pays; false: all there is, to measure guesses rather than time");
  v.field("draft_model", c.draft_model, "",
          "Hugging Face directory, BF16 or INT4, of a small model with the same tokenizer that "
          "guesses too (max_draft_tokens); trainers publish it with the model, in INT4 where the "
          "model is; it is not trained; empty: none");
  v.field("draft_head", c.draft_head, "",
          "directory of a head on the model's hidden states (MTP, EAGLE) that guesses too "
          "(max_draft_tokens), on a CPU; random: one to be trained; empty: none");
  v.field(
      "train_draft_head", c.train_draft_head, "",
      "each rollout worker trains its draft head on what it draws, while it draws; samples stay "
      "as they are; the head is not saved");
  v.field("kv_policy", c.kv_policy, "",
          "sequences that run when weights are swapped: keep (go on), recompute (go on once their "
          "cache was computed anew), abort (end)");
  v.field("timeout_ms", c.timeout_ms, "ms", "deadline of one rollout step", AtLeast{1});
}

}  // namespace nibble
