#include "cli/eval_sets.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/base/fail.h"
#include "core/config/config.h"

namespace nibble {
namespace {

constexpr size_t kMaxSets = 256;

bool is_name(const std::string& text) {
  constexpr std::string_view kOthers = "_-.";
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           kOthers.find(c) != std::string_view::npos;
  });
}

// A file whose path happens to look like NAME=PATH is that file.
EvalSetEntry entry_of(const std::string& text) {
  EvalSetEntry entry;
  const size_t mark = text.find('=');
  if (mark != std::string::npos && is_name(text.substr(0, mark)) &&
      !std::filesystem::exists(text)) {
    entry.name = text.substr(0, mark);
    entry.data = text.substr(mark + 1);
  } else {
    entry.data = text;
  }
  return entry;
}

EvalSet set_of(const EvalSetEntry& entry, const EvalFlags& flags) {
  EvalSet set{entry.name, entry.data, flags.sampling, flags.reward, {}};
  if (set.name.empty()) set.name = set.data.stem().string();
  kernels::SamplingParams& sampling = set.sampling.sampling;
  sampling.temperature =
      static_cast<float>(entry.temperature.value_or(double{sampling.temperature}));
  sampling.top_p = static_cast<float>(entry.top_p.value_or(double{sampling.top_p}));
  sampling.top_k = static_cast<int32_t>(entry.top_k.value_or(sampling.top_k));
  set.sampling.samples = entry.samples.value_or(set.sampling.samples);
  set.sampling.max_new_tokens = entry.max_new_tokens.value_or(set.sampling.max_new_tokens);
  set.sampling.seed = entry.seed.value_or(set.sampling.seed);
  if (!entry.stop.empty()) set.sampling.stop = entry.stop;
  if (entry.reward) {
    set.reward.type = *entry.reward;
    // --remote-url is for the sets that have remote rewards.
    if (!has_remote(parse_reward_parts(set.reward.type))) set.reward.url.clear();
  }
  return set;
}

void check_set(const EvalSet& set) {
  try {
    if (set.data.empty()) fail(ErrorCode::kInvalidArgument, "data is not set");
    if (set.reward.type.empty()) {
      fail(ErrorCode::kInvalidArgument, "no reward; give one in the set, or --reward for all");
    }
    check_reward_flags(set.reward);
    check_sampling_flags(set.sampling);
  } catch (const Error& error) {
    fail(error.code(), "set '{}': {}", set.name, error.what());
  }
}

}  // namespace

std::vector<EvalSet> read_eval_sets(const EvalFlags& flags) {
  check_sampling_flags(flags.sampling);
  std::vector<EvalSetEntry> entries;
  for (const std::string& text : flags.data) entries.push_back(entry_of(text));
  if (!flags.sets.empty()) {
    for (EvalSetEntry& entry : load_config<EvalSetsFile>(flags.sets).config.sets) {
      entries.push_back(std::move(entry));
    }
  }
  if (entries.empty() || entries.size() > kMaxSets) {
    fail(ErrorCode::kInvalidArgument,
         "--data and --sets name {} data sets; there must be from 1 to {}", entries.size(),
         kMaxSets);
  }
  std::vector<EvalSet> sets;
  std::set<std::string> names;
  for (const EvalSetEntry& entry : entries) {
    sets.push_back(set_of(entry, flags));
    EvalSet& set = sets.back();
    check_set(set);
    if (!names.insert(set.name).second) {
      fail(ErrorCode::kInvalidArgument, "two data sets are called '{}'; write --data NAME={}",
           set.name, set.data.string());
    }
    set.prompts = read_prompts(set.data, entry.prompt_key.value_or(flags.prompt_key),
                               entry.label_key.value_or(flags.label_key));
  }
  return sets;
}

}  // namespace nibble
