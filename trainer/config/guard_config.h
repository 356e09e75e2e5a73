#pragma once

#include <array>
#include <cstdint>

#include "core/config/fields.h"

namespace nibble {

/// What a guard does when its limit is passed; later ones are more severe.
enum class GuardAction {
  kWarn,      ///< say so
  kSkip,      ///< leave the update out
  kRollBack,  ///< go back to the newest checkpoint, and on with further prompts
  kStop,      ///< end the job
};

constexpr std::array<EnumName<GuardAction>, 4> enum_names(GuardAction) {
  return {{{GuardAction::kWarn, "warn"},
           {GuardAction::kSkip, "skip"},
           {GuardAction::kRollBack, "roll_back"},
           {GuardAction::kStop, "stop"}}};
}

/// Key `guards`: what a trainer refuses to learn from.
struct GuardsConfig {
  GuardAction nonfinite = GuardAction::kStop;
  double grad_norm_factor = 0.0;
  GuardAction grad_norm_action = GuardAction::kSkip;
  double max_kl = 0.0;
  GuardAction kl_action = GuardAction::kStop;
  double max_gap = 0.0;
  GuardAction gap_action = GuardAction::kWarn;
  int64_t max_rollbacks = 3;
};

template <typename Visitor>
void visit_fields(Visitor& v, GuardsConfig& c) {
  v.field("nonfinite", c.nonfinite, "",
          "a loss, gradient, value or log-probability that is not finite: skip, roll_back or stop");
  v.field("grad_norm_factor", c.grad_norm_factor, "",
          "a gradient's norm may be so many times the mean of the last 16; 0: not watched",
          AtLeast{0});
  v.field("grad_norm_action", c.grad_norm_action, "",
          "what happens then: warn, skip the update, roll_back to the newest checkpoint and go on "
          "with further prompts, or stop");
  v.field("max_kl", c.max_kl, "nats", "largest KL to the reference, k3; 0: not watched",
          AtLeast{0});
  v.field("kl_action", c.kl_action, "", "what happens then");
  v.field("max_gap", c.max_gap, "nats",
          "largest mean difference of log-probabilities, trainer against rollout; 0: not watched",
          AtLeast{0});
  v.field("gap_action", c.gap_action, "", "what happens then");
  v.field("max_rollbacks", c.max_rollbacks, "", "then the job stops", AtLeast{0});
}

}  // namespace nibble
