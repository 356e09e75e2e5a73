#include "trainer/metrics_codec.h"

#include <fmt/format.h>

#include <string>

#include "proto/nibble.pb.h"

namespace nibble {
namespace {

double share(double part, double whole) { return whole > 0.0 ? part / whole : 0.0; }

void encode_part(const PartChanges& part, const std::string& suffix, v1::TrainResponse& response) {
  auto& out = *response.mutable_metrics();
  if (part.codes > 0.0) {
    out["codes_changed_share" + suffix] = share(part.changed_codes, part.codes);
    out["scales_changed_share" + suffix] = share(part.changed_scales, part.scales);
  }
  out["bytes_changed_share" + suffix] = share(part.changed_bytes, part.bytes);
}

void encode_changes(const PackChanges& changes, bool by_layer, v1::TrainResponse& response) {
  const PartChanges total = changes.total();
  if (total.bytes == 0.0) return;  // nothing was packed before
  encode_part(total, "", response);
  if (!by_layer) return;
  for (size_t layer = 0; layer < changes.layers.size(); ++layer) {
    encode_part(changes.layers[layer], fmt::format("_layer_{:02}", layer), response);
  }
  encode_part(changes.rest, "_rest", response);
}

void encode_held(const std::optional<HeldStats>& held, v1::TrainResponse& response) {
  if (!held) return;
  auto& out = *response.mutable_metrics();
  out["projected_masters"] = static_cast<double>(held->projected);
  if (held->rescale_jump) out["rescale_codes_changed_share"] = *held->rescale_jump;
}

void encode_critic(const CriticMetrics& m, v1::TrainResponse& response) {
  auto& out = *response.mutable_metrics();
  out["value_loss"] = m.loss.loss;
  out["value_clip_share"] = m.loss.clip_share;
  out["value_mean"] = m.value_mean;
  out["explained_variance"] = m.explained_variance;
  out["critic_grad_norm"] = m.update.grad_norm;
  out["critic_lr"] = m.update.lr;
  out["critic_gathered_bytes"] = static_cast<double>(m.gathered.plain);
  out["critic_ms"] = m.ms;
}

void encode_gathered(const GatherBytes& gathered, v1::TrainResponse& response) {
  auto& out = *response.mutable_metrics();
  out["gathered_quantized_bytes"] = static_cast<double>(gathered.quantized);
  out["gathered_plain_bytes"] = static_cast<double>(gathered.plain);
}

void encode_trip(const GuardTrip& trip, const std::vector<SampleSuspicion>& suspects,
                 v1::GuardReport& report) {
  report.set_watch(std::string(guard_watch_name(trip.watch)));
  for (const auto& [action, name] : enum_names(GuardAction{})) {
    if (action == trip.action) report.set_action(std::string(name));
  }
  report.set_value(trip.value);
  report.set_limit(trip.limit);
  for (const SampleSuspicion& suspect : suspects) {
    v1::SuspectSample& out = *report.add_suspects();
    out.set_prompt_id(suspect.prompt_id);
    out.set_sample_index(suspect.sample_index);
    out.set_log_prob_diff(suspect.gap);
    out.set_measure(suspect.measure(trip.watch));
    out.set_is_finite(suspect.is_finite);
  }
}

}  // namespace

void encode_metrics(const SupervisedMetrics& m, bool by_layer, v1::TrainResponse& response) {
  auto& out = *response.mutable_metrics();
  out["loss"] = m.tokens.loss;
  out["entropy"] = m.tokens.entropy;
  out["tokens"] = static_cast<double>(m.tokens.target_tokens);
  out["computed_tokens"] = static_cast<double>(m.tokens.computed_tokens);
  out["grad_norm"] = m.update.grad_norm;
  out["lr"] = m.update.lr;
  encode_gathered(m.gathered, response);
  encode_changes(m.changes, by_layer, response);
  encode_held(m.held, response);
  out["forward_backward_ms"] = m.forward_backward_ms;
  out["optimizer_ms"] = m.optimizer_ms;
  out["pack_ms"] = m.pack_ms;
}

void encode_metrics(const TrainMetrics& m, bool by_layer, v1::TrainResponse& response) {
  auto& out = *response.mutable_metrics();
  out["loss"] = m.loss.loss;
  out["policy_loss"] = m.loss.policy_loss;
  out["kl_loss"] = m.loss.kl_loss;
  out["clip_share"] = m.loss.clip_share;
  out["ratio_mean"] = m.loss.ratio_mean;
  out["ratio_max"] = m.loss.ratio_max;
  out["old_kl"] = m.loss.old_kl_mean;
  out["ess"] = m.loss.ess;
  out["correction_mean"] = m.loss.correction_mean;
  out["correction_share"] = m.loss.correction_share;
  out["rejected_share"] = m.loss.rejected_share;
  out["vetoed_share"] = m.loss.vetoed_share;
  out["entropy"] = m.entropy;
  out["grad_norm"] = m.update.grad_norm;
  out["lr"] = m.update.lr;
  if (m.has_reference) {
    out["kl_reference"] = m.kl_reference;
    out["kl_reference_k1"] = m.kl_reference_k1;
  }
  if (m.has_teacher) {
    out["kl_teacher"] = m.kl_teacher;
    out["teacher_ms"] = m.teacher_ms;
  }
  if (m.critic) encode_critic(*m.critic, response);
  out["kl_rollout"] = m.loss.rollout_kl_mean;
  out["logprob_abs_diff_mean"] = m.log_prob_diff_mean;
  out["logprob_abs_diff_max"] = m.log_prob_diff_max;
  for (const auto& [name, value] : PositionGap::means(m.gap_by_position)) out[name] = value;
  if (m.experts) {
    out["expert_load_max"] = m.experts->busiest;
    out["expert_idle_share"] = m.experts->idle;
  }
  out["train_response_tokens"] = static_cast<double>(m.response_tokens);
  out["train_computed_tokens"] = static_cast<double>(m.computed_tokens);
  encode_gathered(m.gathered, response);
  encode_changes(m.changes, by_layer, response);
  encode_held(m.held, response);
  out["reference_ms"] = m.reference_ms;
  out["old_log_probs_ms"] = m.old_log_probs_ms;
  out["forward_backward_ms"] = m.forward_backward_ms;
  out["optimizer_ms"] = m.optimizer_ms;
  out["pack_ms"] = m.pack_ms;
  out["skipped_updates"] = static_cast<double>(m.skipped_updates);
  if (m.trip) encode_trip(*m.trip, m.trip_suspects, *response.mutable_guard());
}

}  // namespace nibble
