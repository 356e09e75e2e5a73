#include "cli/optimizer_checks.h"

#include <string>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

class Checks {
 public:
  explicit Checks(const ConfigSource& source) : source_(source) {}

  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    fail(ErrorCode::kInvalidArgument, "{} ({}) {}", key, source_.where(key), why);
  }

  // Of keys "SECTION.schedule" and others; warm-up has a name of its own in each section.
  void schedule(const std::string& section, const std::string& warmup,
                const OptimizerConfig& o) const {
    if (o.schedule == LrStyle::kConstant) {
      for (const auto& [key, is_set] :
           {std::pair(".decay_steps", o.decay_steps != 0), {".min_lr", o.min_lr != 0.0}}) {
        if (!is_set) continue;
        refuse(section + key,
               fmt::format("means nothing with {}.schedule: constant: remove it", section));
      }
      return;
    }
    if (o.decay_steps <= o.warmup_steps) {
      refuse(section + ".decay_steps",
             fmt::format("is {}, at which the learning rate is to have reached min_lr; it must be "
                         "above {}.{} = {}",
                         o.decay_steps, section, warmup, o.warmup_steps));
    }
    if (o.min_lr > o.lr) {
      refuse(section + ".min_lr",
             fmt::format("is {}, above {}.lr = {}: lower it", o.min_lr, section, o.lr));
    }
  }

 private:
  const ConfigSource& source_;
};

}  // namespace

void check_optimizer(const RunConfig& config, const ConfigSource& source) {
  const OptimizerConfig& o = config.optimizer;
  const Checks checks(source);
  for (const auto& [key, beta] :
       {std::pair("optimizer.beta1", o.beta1), {"optimizer.beta2", o.beta2}}) {
    if (beta >= 1.0) {
      checks.refuse(key, "is 1, with which a moment never changes: it must be below 1");
    }
  }
  checks.schedule("optimizer", "warmup_steps", o);
  checks.schedule("critic", "lr_warmup_steps", critic_optimizer(config.critic, o));
  if (o.mapped_in.empty()) return;
  if (o.offload) checks.refuse("optimizer.mapped_in", "goes without optimizer.offload: remove one");
  if (config.cluster.device == DeviceChoice::kCuda) {
    checks.refuse("optimizer.mapped_in",
                  "goes with cluster.device: cpu; a GPU does not reach mapped files: set "
                  "optimizer.offload");
  }
}

}  // namespace nibble
