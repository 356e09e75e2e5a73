#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/offline_generator.h"
#include "cli/reward_flags.h"
#include "core/config/fields.h"
#include "core/config/limits.h"
#include "core/data/prompts.h"

namespace nibble {

/// What `nibble eval` is asked for.
struct EvalFlags {
  SamplingFlags sampling;
  RewardConfig reward{.type = ""};
  std::vector<std::string> data;  ///< [NAME=]PATH
  std::filesystem::path sets;     ///< a file of EvalSetsFile; empty: none
  std::string prompt_key = "prompt";
  std::string label_key = "label";
  std::filesystem::path output;  ///< gets a line for each set; empty: none
  bool json = false;
  EvalFlags() { sampling.samples = 8; }
};

/// One data set as a file of sets says it. What is left out is as the flags say.
struct EvalSetEntry {
  std::string name;
  std::filesystem::path data;
  std::optional<std::string> reward;
  std::optional<int64_t> samples;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> seed;
  std::vector<std::string> stop;
  std::optional<std::string> prompt_key;
  std::optional<std::string> label_key;
};
template <typename Visitor>
void visit_fields(Visitor& v, EvalSetEntry& c) {
  v.field("name", c.name, "", "in the results; empty: the file's, without its ending");
  v.field("data", c.data, "", "JSON lines of prompts and labels");
  v.field("reward", c.reward, "", "a type, or several with weights, as --reward");
  v.field("samples", c.samples, "samples", "of each prompt", AtLeast{1});
  v.field("temperature", c.temperature, "", "divides the logits; 0: greedy", Range{0, 1000});
  v.field("top_p", c.top_p, "", "nucleus that may be drawn; 1: all", Range{0.000001, 1});
  v.field("top_k", c.top_k, "tokens", "most likely tokens that may be drawn; 0: all",
          Range{0, 1 << 30});
  v.field("max_new_tokens", c.max_new_tokens, "tokens", "longest response", AtLeast{1});
  v.field("seed", c.seed, "", "of the random draws", AtLeast{0});
  v.field("stop", c.stop, "", "texts that end a response");
  v.field("prompt_key", c.prompt_key, "", "field: a string, or a list of chat messages");
  v.field("label_key", c.label_key, "", "field: what the reward compares with");
}

/// A file of --sets.
struct EvalSetsFile {
  std::vector<EvalSetEntry> sets;
};
template <typename Visitor>
void visit_fields(Visitor& v, EvalSetsFile& c) {
  v.section("sets", c.sets, "data sets, in order");
}

/// A data set and all that its samples and marks depend on, besides the model.
struct EvalSet {
  std::string name;
  std::filesystem::path data;
  SamplingFlags sampling;
  RewardConfig reward;
  std::vector<PromptRecord> prompts;
};

/// The sets of --data, then those of --sets, read and checked. Throws Error naming the flag, or the
/// set and its field, that is wrong, and a name that two sets have.
std::vector<EvalSet> read_eval_sets(const EvalFlags& flags);

}  // namespace nibble
