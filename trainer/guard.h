#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "trainer/config/guard_config.h"

namespace nibble {

enum class GuardWatch { kNonfinite, kGradNorm, kKl, kGap, kCriticNonfinite };
std::string_view guard_watch_name(GuardWatch watch);

/// Figures of an update before it is made, equal on all ranks.
struct GuardFigures {
  double loss = 0.0;
  double grad_norm = 0.0;
  double gap = 0.0;               ///< mean |log-probability of trainer - of rollout|
  std::optional<double> kl = {};  ///< to the reference, if it was measured
  double value_loss = 0.0;        ///< 0 without a critic
  double critic_grad_norm = 0.0;
};

/// A limit that an update has passed.
struct GuardTrip {
  GuardWatch watch = GuardWatch::kNonfinite;
  GuardAction action = GuardAction::kWarn;
  double value = 0.0;
  double limit = 0.0;  ///< of what is not finite: 0
};

/// Looks at every update before it is made. Deterministic: what it remembers goes to checkpoints.
class Guard {
 public:
  static constexpr size_t kWindow = 16;  ///< norms that the mean is of
  static constexpr size_t kFewest = 8;   ///< with fewer nothing is a spike

  explicit Guard(const GuardsConfig& config) : config_(config) {}

  /// Of all limits that are passed, the one with the most severe action.
  std::optional<GuardTrip> check(const GuardFigures& figures) const;
  /// The update was made.
  void note(double grad_norm);

  const std::vector<double>& recent_norms() const { return norms_; }
  void restore(std::vector<double> recent_norms);

 private:
  GuardsConfig config_;
  std::vector<double> norms_;  // oldest first
};

/// A sample of a micro-batch, and how far it is from what is expected.
struct SampleSuspicion {
  uint64_t prompt_id = 0;
  uint32_t sample_index = 0;
  double gap = 0.0;       ///< largest
  double kl = 0.0;        ///< mean over tokens
  double pull = 0.0;      ///< sum over tokens of |d loss / d log p|
  bool is_finite = true;  ///< log-probabilities and advantage
  /// What a trip of `watch` ranks samples by.
  double measure(GuardWatch watch) const;
};

/// The likeliest causes of a trip, most suspicious first.
std::vector<SampleSuspicion> suspects(std::vector<SampleSuspicion> samples, GuardWatch watch);

}  // namespace nibble
