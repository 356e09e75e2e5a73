#pragma once

#include <cstdint>
#include <optional>

namespace nibble {

/// How a run ended. An evaluation is a reward, of a supervised job a loss.
struct RunSummary {
  int64_t steps = 0;
  bool interrupted = false;
  std::optional<double> first_eval;  ///< before training
  std::optional<double> last_eval;
};

}  // namespace nibble
