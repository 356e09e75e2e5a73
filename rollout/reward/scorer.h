#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/error.h"
#include "core/base/json.h"
#include "rollout/reward/reward_spec.h"

namespace nibble {

/// Longest response that is scored; a longer one is refused.
constexpr size_t kMaxResponseBytes = 4 << 20;

/// A score, or why there is none. Never a score of 0 in place of an error.
using RewardOutcome = std::variant<double, Error>;

/// What is scored. Borrows both.
struct ScoredText {
  std::string_view response;
  const Json* label = nullptr;
};

/// Scores responses against their labels. Any thread; time and memory are linear in the response.
class Scorer {
 public:
  virtual ~Scorer() = default;
  /// Throws Error{kInvalidArgument} for a label that does not fit the type, a response above
  /// kMaxResponseBytes and a response that the type's own rule refuses to score; never returns a 0
  /// in their place. The score is finite.
  virtual double score(std::string_view response, const Json& label) const = 0;
  /// How many samples are worth scoring in one call: above 1 where a call travels.
  virtual size_t max_batch() const { return 1; }
  /// One outcome for each sample, in order: here score() of each.
  virtual std::vector<RewardOutcome> score_all(std::span<const ScoredText> samples) const;
};

/// Makes the scorer of a type by rule, "boxed_" before it included; docs/user-guide.md says what
/// each does. Throws Error{kInvalidArgument} for another type, naming these.
std::unique_ptr<Scorer> make_scorer(const std::string& type);

/// The weighted sum of the parts, remote ones too. Throws Error{kInvalidArgument} as above and for
/// parts that are none, more than sixteen or twice the same, a weight that is not finite, and a URL
/// that is missing, wrong or for nothing.
std::unique_ptr<Scorer> make_scorer(const RewardSpec& spec);

/// Every type, for flags and messages: "last_number, exact, ..".
std::string known_reward_types();

}  // namespace nibble
