#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

/// One sampled response, with what the trainer needs to learn from it. Tokens and figures are the
/// engine's own: nothing is ever tokenized again.
struct Sample {
  uint32_t sample_index = 0;      ///< within its prompt's group
  std::vector<int32_t> response;  ///< stop token included
  std::vector<float> log_probs;   ///< of the response, at the sampling temperature
  std::vector<int64_t> versions;  ///< weight version that made each token
  std::string finish_reason;      ///< "stop" or "length"
  double reward = 0.0;
};

/// A prompt and all samples drawn from it: the unit of advantage, and of work.
struct SampleGroup {
  uint64_t prompt_id = 0;
  std::vector<int32_t> prompt;
  std::vector<Sample> samples;
};

}  // namespace nibble
