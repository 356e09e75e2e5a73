#pragma once

#include <cstdint>

namespace nibble {

/// Ends a sample by something other than a stop id, such as a stop string (the engine knows no
/// text; the service has a tokenizer). One instance per request; called by the engine's thread.
class StopCondition {
 public:
  virtual ~StopCondition() = default;
  /// Called once for every drawn token, in order, unless a stop id ended the sample with it.
  /// True ends the sample; the token is kept.
  virtual bool ends_at(int32_t token) = 0;
};

}  // namespace nibble
