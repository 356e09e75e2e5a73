#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "core/base/json.h"

namespace nibble {

/// Longest response that is scored; a longer one is refused.
constexpr size_t kMaxResponseBytes = 4 << 20;

/// Scores one response against one label. Any thread; time and memory are linear in the response.
class Scorer {
 public:
  virtual ~Scorer() = default;
  /// Throws Error{kInvalidArgument} for a label that does not fit the type, a response above
  /// kMaxResponseBytes and a response that the type's own rule refuses to score; never returns a 0
  /// in their place. The score is finite.
  virtual double score(std::string_view response, const Json& label) const = 0;
};

/// Makes the scorer of a `reward.type`:
///   last_number    1 if the last number of the response equals the label's (a JSON number, or a
///                  string that is read alike: its last number), else 0; rules in last_number.h
///   exact          1 if response and label are equal but for white space around them, else 0
///   reasoning_gym  the library's score of the last <answer>..</answer>, or of the whole response;
///                  the label is the item (gym_score.h)
/// Throws Error{kInvalidArgument} for another type, naming these.
std::unique_ptr<Scorer> make_scorer(const std::string& type);

}  // namespace nibble
