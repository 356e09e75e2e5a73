#include "cli/eval_report.h"

#include <fmt/format.h>

#include <cstdlib>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

OrderedJson pass_json(const std::vector<std::pair<int64_t, double>>& pass) {
  OrderedJson json = OrderedJson::object();
  for (const auto& [k, value] : pass) json[std::to_string(k)] = value;
  return json;
}

// The number that was written, not the float32 beside it.
double as_written(float value) { return std::strtod(fmt::format("{}", value).c_str(), nullptr); }

// Appends what was asked for and what came of it.
void add_set(const EvalSet& set, const SetResult& result, OrderedJson& json) {
  const EvalStats& stats = result.stats;
  json["name"] = set.name;
  json["data"] = set.data.string();
  json["reward"] = set.reward.type;
  json["prompts"] = stats.prompts;
  json["samples_per_prompt"] = set.sampling.samples;
  json["temperature"] = as_written(set.sampling.sampling.temperature);
  json["top_p"] = as_written(set.sampling.sampling.top_p);
  json["top_k"] = set.sampling.sampling.top_k;
  json["max_new_tokens"] = set.sampling.max_new_tokens;
  json["seed"] = set.sampling.seed;
  json["scored"] = stats.scored;
  json["unscored"] = stats.unscored;
  json["generated_tokens"] = result.generated_tokens;
  json["avg"] = stats.average;
  json["avg_standard_error"] = stats.standard_error;
  json["pass"] = pass_json(stats.pass);
}

std::vector<EvalStats> stats_of(std::span<const SetResult> results) {
  std::vector<EvalStats> stats;
  for (const SetResult& result : results) stats.push_back(result.stats);
  return stats;
}

}  // namespace

void print_eval_json(const EvalFlags& flags, std::span<const EvalSet> sets,
                     std::span<const SetResult> results) {
  OrderedJson root = {{"model", flags.sampling.model.model.string()}};
  if (sets.size() == 1) {
    add_set(sets[0], results[0], root);
  } else {
    OrderedJson& list = root["sets"] = OrderedJson::array();
    for (size_t i = 0; i < sets.size(); ++i) {
      OrderedJson one;
      add_set(sets[i], results[i], one);
      list.push_back(std::move(one));
    }
    const MacroStats macro = macro_average(stats_of(results));
    root["macro"] = {{"avg", macro.average},
                     {"avg_standard_error", macro.standard_error},
                     {"pass", pass_json(macro.pass)}};
  }
  fmt::print("{}\n", root.dump());
}

void print_eval(const EvalFlags& flags, std::span<const EvalSet> sets,
                std::span<const SetResult> results) {
  const auto print_pass = [](const std::vector<std::pair<int64_t, double>>& pass) {
    for (const auto& [k, value] : pass) {
      fmt::print("  {:<10}{:.4f}\n", fmt::format("pass@{}", k), value);
    }
  };
  for (size_t i = 0; i < sets.size(); ++i) {
    const EvalSet& set = sets[i];
    const EvalStats& stats = results[i].stats;
    fmt::print("{} on {}: {} prompts, {} samples each at temperature {}, reward {}\n",
               flags.sampling.model.model.string(), sets.size() == 1 ? set.data.string() : set.name,
               stats.prompts, set.sampling.samples, set.sampling.sampling.temperature,
               set.reward.type);
    fmt::print("  {:<10}{:.4f} +- {:.4f}\n", fmt::format("avg@{}", set.sampling.samples),
               stats.average, stats.standard_error);
    print_pass(stats.pass);
  }
  if (sets.size() == 1) return;
  const MacroStats macro = macro_average(stats_of(results));
  fmt::print("mean of {} sets\n  {:<10}{:.4f} +- {:.4f}\n", sets.size(), "avg", macro.average,
             macro.standard_error);
  print_pass(macro.pass);
}

EvalOutput::EvalOutput(const std::filesystem::path& path) : path_(path) {
  if (path.empty()) return;
  out_.open(path, std::ios::app);
  if (!out_) {
    fail(ErrorCode::kInvalidArgument, "--output '{}' cannot be written", path.string());
  }
}

void EvalOutput::append(const EvalFlags& flags, const EvalSet& set, const SetResult& result) {
  if (path_.empty()) return;
  OrderedJson line = {{"model", flags.sampling.model.model.string()}, {"unix_ms", unix_ms()}};
  add_set(set, result, line);
  OrderedJson& rewards = line["rewards"] = OrderedJson::array();
  for (const auto& of_prompt : result.rewards) {
    OrderedJson& row = rewards.emplace_back(OrderedJson::array());
    for (const auto& reward : of_prompt) {
      row.push_back(reward ? OrderedJson(*reward) : OrderedJson(nullptr));
    }
  }
  out_ << line.dump() << '\n' << std::flush;
  if (!out_) {
    fail(ErrorCode::kResourceExhausted, "--output '{}': the line of set '{}' was not written",
         path_.string(), set.name);
  }
}

}  // namespace nibble
