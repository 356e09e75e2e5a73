#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// One prompt of a data set.
struct PromptRecord {
  Json content;  ///< a string, or a list of chat messages
  Json label;    ///< what the reward compares with; any JSON
};

/// Reads JSON lines. Every line is an object with `prompt_key` (a string or a list of messages with
/// role and content) and `label_key`. Throws Error naming file and line for anything else, and what
/// for_each_json_record throws.
std::vector<PromptRecord> read_prompts(const std::filesystem::path& path,
                                       const std::string& prompt_key, const std::string& label_key);

/// The order in which a data set is trained on: a stream of prompts without end, each epoch in a
/// new order (Fisher-Yates on splitmix64 of seed and epoch; the same on every machine). A position
/// in the stream is all the state there is, so a run resumes at the sample.
class PromptStream {
 public:
  PromptStream(int64_t num_prompts, uint64_t seed, bool shuffle);
  /// Index of the prompt at `position` >= 0.
  int64_t index_at(int64_t position);

 private:
  const int64_t num_prompts_;
  const uint64_t seed_;
  const bool shuffle_;
  int64_t epoch_ = -1;
  std::vector<int64_t> order_;  // of epoch_
};

}  // namespace nibble
