#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>

#include "core/config/fields.h"
#include "core/models/recompute.h"
#include "core/quant/held_scale.h"
#include "trainer/algo/advantages.h"
#include "trainer/algo/policy_loss.h"
#include "trainer/algo/schedule.h"

namespace nibble::quant {

constexpr std::array<EnumName<CellPlace>, 2> enum_names(CellPlace) {
  return {{{CellPlace::kShifted, "shifted"}, {CellPlace::kNearest, "nearest"}}};
}

}  // namespace nibble::quant

namespace nibble {

/// When the BF16 reference model runs.
enum class ReferenceMode { kAuto, kAlways, kNever };

constexpr std::array<EnumName<ReferenceMode>, 3> enum_names(ReferenceMode) {
  return {{{ReferenceMode::kAuto, "auto"},
           {ReferenceMode::kAlways, "always"},
           {ReferenceMode::kNever, "never"}}};
}
constexpr std::array<EnumName<AdvantageType>, 6> enum_names(AdvantageType) {
  return {{{AdvantageType::kGrpo, "grpo"},
           {AdvantageType::kRloo, "rloo"},
           {AdvantageType::kReinforcePp, "reinforce_pp"},
           {AdvantageType::kReinforcePpBaseline, "reinforce_pp_baseline"},
           {AdvantageType::kGae, "gae"},
           {AdvantageType::kOpd, "opd"}}};
}
constexpr std::array<EnumName<PolicyObjective>, 4> enum_names(PolicyObjective) {
  return {{{PolicyObjective::kPpoClip, "ppo_clip"},
           {PolicyObjective::kGspo, "gspo"},
           {PolicyObjective::kCispo, "cispo"},
           {PolicyObjective::kSft, "sft"}}};
}
constexpr std::array<EnumName<Aggregation>, 3> enum_names(Aggregation) {
  return {{{Aggregation::kSeqMeanTokenMean, "seq-mean-token-mean"},
           {Aggregation::kTokenMean, "token-mean"},
           {Aggregation::kSeqMeanTokenSumNorm, "seq-mean-token-sum-norm"}}};
}
constexpr std::array<EnumName<OffPolicyCorrection>, 4> enum_names(OffPolicyCorrection) {
  return {{{OffPolicyCorrection::kNone, "none"},
           {OffPolicyCorrection::kTis, "tis"},
           {OffPolicyCorrection::kIcepop, "icepop"},
           {OffPolicyCorrection::kMis, "mis"}}};
}
constexpr std::array<EnumName<MisMode>, 3> enum_names(MisMode) {
  return {{{MisMode::kTruncate, "truncate"}, {MisMode::kMask, "mask"}, {MisMode::kClip, "clip"}}};
}
constexpr std::array<EnumName<MisLevel>, 3> enum_names(MisLevel) {
  return {{{MisLevel::kToken, "token"},
           {MisLevel::kSequence, "sequence"},
           {MisLevel::kGeometric, "geometric"}}};
}
constexpr std::array<EnumName<KlEstimator>, 4> enum_names(KlEstimator) {
  return {{{KlEstimator::kK1, "k1"},
           {KlEstimator::kK2, "k2"},
           {KlEstimator::kK3, "k3"},
           {KlEstimator::kLowVarKl, "low_var_kl"}}};
}
constexpr std::array<EnumName<LrStyle>, 3> enum_names(LrStyle) {
  return {{{LrStyle::kConstant, "constant"},
           {LrStyle::kLinear, "linear"},
           {LrStyle::kCosine, "cosine"}}};
}

constexpr std::array<EnumName<Recompute>, 3> enum_names(Recompute) {
  return {{{Recompute::kNone, "none"},
           {Recompute::kSelective, "selective"},
           {Recompute::kFull, "full"}}};
}

/// What the masters start from.
enum class ModelInit {
  kPretrained,  ///< the weights in `model.path`
  kRandom,      ///< normal(0, initializer_range of its config.json), norms 1
};
constexpr std::array<EnumName<ModelInit>, 2> enum_names(ModelInit) {
  return {{{ModelInit::kPretrained, "pretrained"}, {ModelInit::kRandom, "random"}}};
}

/// Key `model`: where weights come from.
struct ModelSection {
  std::filesystem::path path;
  ModelInit init = ModelInit::kPretrained;
  std::filesystem::path int4;
  std::filesystem::path reference;
  std::filesystem::path teacher;
  bool offload_reference = false;
};

template <typename Visitor>
void visit_fields(Visitor& v, ModelSection& c) {
  v.field("path", c.path, "", "Hugging Face directory the masters start from (BF16, or INT4)");
  v.field("init", c.init, "",
          "random: weights drawn by run.seed; `path` needs config.json and tokenizer only (sft)");
  v.field(
      "int4", c.int4, "",
      "INT4 checkpoint whose quantization_config says what is quantized; empty: `path` says it");
  v.field("reference", c.reference, "", "BF16 directory of the KL reference; empty: `path`");
  v.field("teacher", c.teacher, "",
          "BF16 or INT4 directory of the model that is distilled (algorithm.advantage: opd); same "
          "tokenizer, any size");
  v.field("offload_reference", c.offload_reference, "",
          "keep reference and teacher in page-locked host memory; a GPU gets them layer by layer");
}

/// Where codes and scales come from at the start.
enum class QatStart {
  kRtn,         ///< round to nearest of the masters, and again after every optimizer step
  kCalibrated,  ///< an INT4 checkpoint, whose scales are held from then on
};
constexpr std::array<EnumName<QatStart>, 2> enum_names(QatStart) {
  return {{{QatStart::kRtn, "rtn"}, {QatStart::kCalibrated, "calibrated"}}};
}

/// Key `qat`: fake quantization in the trainer's forward pass.
struct QatSection {
  bool enabled = true;
  std::optional<int64_t> group_size;
  QatStart start = QatStart::kRtn;
  quant::CellPlace masters = quant::CellPlace::kShifted;
  int64_t rescale_every = 0;
};

template <typename Visitor>
void visit_fields(Visitor& v, QatSection& c) {
  v.field("enabled", c.enabled, "",
          "multiply with the INT4 weights that are served (OPEN_TRAINING_INT4_FAKE_QAT_FLAG)");
  v.field("group_size", c.group_size, "weights",
          "overrides the checkpoint's group size (OPEN_TRAINING_INT4_GROUP_SIZE)",
          OneOf{32, 64, 128});
  v.field("start", c.start, "",
          "calibrated: begin in the codes of model.int4 (of any grid) and hold its scales; rtn: "
          "scales follow the weights");
  v.field("masters", c.masters, "",
          "calibrated: where a master starts whose code is not its weight's own: shifted by whole "
          "scales, or nearest to the weight, which is the edge to the next code");
  v.field("rescale_every", c.rescale_every, "optimizer steps",
          "calibrated: derive the held scales anew from the weights; 0 = never", AtLeast{0});
}

/// Key `algorithm`.
struct AlgorithmConfig {
  AdvantageConfig advantage;
  PolicyLossConfig loss;
  ReferenceMode reference = ReferenceMode::kAuto;
  int64_t kl_metric_every = 1;
  bool routing_replay = false;
  bool use_rollout_logprobs = false;
  int64_t overlong_buffer = 0;
  double overlong_penalty = 1.0;
  bool mask_truncated = false;
};

/// Whether the loss or the reward of every step needs the reference.
inline bool trains_on_reference(const AlgorithmConfig& c) {
  return c.loss.kl_coef != 0.0 || c.advantage.kl_reward_coef != 0.0;
}
/// Whether any step may need it.
inline bool may_need_reference(const AlgorithmConfig& c) {
  if (c.reference == ReferenceMode::kNever) return false;
  return c.reference == ReferenceMode::kAlways || trains_on_reference(c) || c.kl_metric_every > 0;
}

template <typename Visitor>
void visit_mis(Visitor& v, CorrectionConfig& c) {
  v.field("mis_mode", c.mode, "", "mis: what becomes of a ratio outside of the bounds");
  v.field("mis_level", c.level, "", "mis: whose ratio a token has");
  v.field("mis_veto", c.veto, "", "mis: a token's ratio below it leaves out its sample; 0 = off",
          Range{0, 1});
  v.field("mis_reject_level", c.reject_level, "", "mis: leaves out tokens by this level's ratio");
  v.field("mis_reject_low", c.reject_low, "", "below this; unset: correction_low", AtLeast{0});
  v.field("mis_reject_high", c.reject_high, "", "above this; unset: correction_high", Above{0});
}

template <typename Visitor>
void visit_fields(Visitor& v, AlgorithmConfig& c) {
  v.field("advantage", c.advantage.type, "",
          "how rewards become advantages; gae: by a critic, which is trained too; opd: "
          "model.teacher judges, not rewards");
  v.field("normalize_std", c.advantage.normalize_std, "", "false: Dr.GRPO");
  v.field("gamma", c.advantage.gamma, "", "reinforce_pp, gae: discount of one token", Range{0, 1});
  v.field("lambda", c.advantage.lambda, "",
          "gae: 1 = what was rewarded less the value, 0 = the error of one token's value",
          Range{0, 1});
  v.field("kl_reward_coef", c.advantage.kl_reward_coef, "",
          "reinforce_pp types, gae: weight of the KL in the tokens' rewards, not with kl_loss_coef",
          AtLeast{0});
  v.field("loss", c.loss.objective, "",
          "policy objective; sft: cross-entropy of given responses or texts, nothing is sampled");
  v.field("clip_low", c.loss.clip_low, "", "ratio is clipped below 1 - clip_low", Range{0, 1});
  v.field("clip_high", c.loss.clip_high, "", "ratio is clipped above 1 + clip_high", AtLeast{0});
  v.field("dual_clip", c.loss.dual_clip, "", "c > 1: the loss is at most -c A for A < 0; 0 = off");
  v.field("aggregation", c.loss.aggregation, "",
          "how token losses become one number (sft: token-mean)");
  v.field("sum_norm", c.loss.sum_norm, "tokens", "divisor of seq-mean-token-sum-norm", Above{0});
  v.field("correction", c.loss.correction.kind, "",
          "weight for the gap between trainer and rollout");
  v.field("correction_low", c.loss.correction.low, "", "its lower bound", AtLeast{0});
  v.field("correction_high", c.loss.correction.high, "", "its upper bound", Above{0});
  visit_mis(v, c.loss.correction);
  v.field("kl_estimator", c.loss.kl_estimator, "", "KL to the BF16 reference");
  v.field("kl_loss_coef", c.loss.kl_coef, "", "its weight in the loss", AtLeast{0});
  v.field("kl_unbiased", c.loss.kl_unbiased, "", "times the importance ratio");
  v.field("entropy_coef", c.loss.entropy_coef, "", "weight of the entropy bonus", AtLeast{0});
  v.field("use_rollout_logprobs", c.use_rollout_logprobs, "",
          "old log-probabilities are the rollout's, not the trainer's");
  v.field("overlong_buffer", c.overlong_buffer, "tokens",
          "before max_new_tokens, over which a penalty grows from 0; 0 = none", AtLeast{0});
  v.field("overlong_penalty", c.overlong_penalty, "", "what a response of max_new_tokens loses",
          Above{0});
  v.field("mask_truncated", c.mask_truncated, "",
          "leave responses that max_new_tokens cut off out of the loss");
  v.field("reference", c.reference, "", "auto: where a KL coefficient or metric needs it");
  v.field(
      "routing_replay", c.routing_replay, "",
      "R3: trainers send tokens to the experts that the rollout chose; for mixtures of experts in "
      "fast numerics (exact needs none)");
  v.field("kl_metric_every", c.kl_metric_every, "steps", "measures the KL; 0 = never", AtLeast{0});
}

/// What AdamW's moments are kept in.
enum class MomentType { kFp32, kBf16 };
constexpr std::array<EnumName<MomentType>, 2> enum_names(MomentType) {
  return {{{MomentType::kFp32, "fp32"}, {MomentType::kBf16, "bf16"}}};
}

/// Key `optimizer`: AdamW with float32 masters.
struct OptimizerConfig {
  double lr = 1e-6;
  LrStyle schedule = LrStyle::kConstant;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;
  double min_lr = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;
  int64_t global_batch = 64;
  int64_t steps_per_rollout = 1;
  MomentType state = MomentType::kFp32;
  bool offload = false;
  std::filesystem::path mapped_in;
};

template <typename Visitor>
void visit_fields(Visitor& v, OptimizerConfig& c) {
  v.field("lr", c.lr, "", "learning rate after warm-up", AtLeast{0});
  v.field("schedule", c.schedule, "", "learning rate over time");
  v.field("warmup_steps", c.warmup_steps, "steps", "linear warm-up", AtLeast{0});
  v.field("decay_steps", c.decay_steps, "steps", "step at which min_lr is reached", AtLeast{0});
  v.field("min_lr", c.min_lr, "", "final learning rate", AtLeast{0});
  v.field("beta1", c.beta1, "", "decay of the first moment", Range{0, 1});
  v.field("beta2", c.beta2, "", "decay of the second moment", Range{0, 1});
  v.field("eps", c.eps, "", "added to the root", Above{0});
  v.field("weight_decay", c.weight_decay, "", "decoupled; norms are not decayed", AtLeast{0});
  v.field("clip_norm", c.clip_norm, "", "global gradient norm; 0 = off", AtLeast{0});
  v.field("global_batch", c.global_batch, "samples", "of one optimizer step", AtLeast{1});
  v.field("steps_per_rollout", c.steps_per_rollout, "steps", "optimizer steps a rollout",
          AtLeast{1});
  v.field("state", c.state, "",
          "type of both moments; bf16: half the memory, rounded at random so that small changes "
          "count on average");
  v.field("offload", c.offload, "",
          "keep masters and moments in page-locked host memory; a GPU works on them over the bus");
  v.field("mapped_in", c.mapped_in, "",
          "directory in which masters and moments are nameless mapped files, for a CPU with little "
          "RAM; empty: they are in RAM");
}

/// Key `parallel`: how trainers share the work.
struct ParallelConfig {
  int64_t tensor = 1;
  int64_t expert = 1;
  int64_t context = 1;
  int64_t max_tokens_per_device = 4096;
};

template <typename Visitor>
void visit_fields(Visitor& v, ParallelConfig& c) {
  v.field("tensor", c.tensor, "ranks",
          "that work on the same tokens, each with its rows of attention and dense MLPs",
          Range{1, 1024});
  v.field("expert", c.expert, "ranks",
          "that hold a layer's experts together; each expert is whole on one of them",
          Range{1, 1024});
  v.field("context", c.context, "ranks",
          "that share the tokens of the same samples, for long ones; each has the keys and values "
          "of all in attention",
          Range{1, 1024});
  v.field("max_tokens_per_device", c.max_tokens_per_device, "tokens",
          "of one micro-batch, of each rank that shares it", AtLeast{1});
}

/// Key `trainer`: what a trainer rank computes again rather than keep.
struct TrainerSection {
  Recompute recompute = Recompute::kNone;
};

template <typename Visitor>
void visit_fields(Visitor& v, TrainerSection& c) {
  v.field("recompute", c.recompute, "",
          "activations that the backward pass computes again, to the same bits: selective, those "
          "of norms and of silu(gate) * up; full, all but each layer's input");
}

}  // namespace nibble
