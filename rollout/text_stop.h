#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tokenizer/stream_decoder.h"
#include "rollout/engine/stop_condition.h"
#include "rollout/engine/stop_strings.h"

namespace nibble {

/// Stop strings of one sample, seen through the tokenizer, which must outlive it.
class TextStop final : public StopCondition {
 public:
  /// Throws Error{kInvalidArgument} as StopStrings does.
  TextStop(const Tokenizer& tokenizer, const std::vector<std::string>& strings);
  bool ends_at(int32_t token) override;

 private:
  StreamDecoder decoder_;
  StopStrings strings_;
};

}  // namespace nibble
