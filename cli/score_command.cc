#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/json_lines.h"
#include "cli/reward_flags.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kBatchLines = 256;
constexpr size_t kBatchBytes = 16 << 20;

struct ScoreFlags {
  RewardConfig reward;
  std::string input = "-";
  std::string output = "-";
};

struct Failures {
  int64_t lines = 0;
  int64_t failed = 0;
  std::string first;  // "stdin line 3: why"
};

RewardSample read_sample(const OrderedJson& line, const std::string& where) {
  refuse_other_keys(line, {"response", "label"}, where);
  for (const char* key : {"response", "label"}) {
    if (!line.contains(key)) {
      fail(ErrorCode::kInvalidArgument, "{}: key '{}' is missing", where, key);
    }
  }
  if (!line["response"].is_string()) {
    fail(ErrorCode::kInvalidArgument, "{}: 'response' is not a string", where);
  }
  return {line["response"].get<std::string>(), Json(line["label"])};
}

// What there is to read without waiting, up to a batch; empty at the end.
std::vector<RewardSample> read_batch(JsonLineReader& reader, std::vector<std::string>& where) {
  std::vector<RewardSample> batch;
  where.clear();
  size_t bytes = 0;
  OrderedJson line;
  while (batch.size() < kBatchLines && bytes < kBatchBytes && (batch.empty() || reader.ready()) &&
         reader.next(line)) {
    where.push_back(reader.where());
    batch.push_back(read_sample(line, where.back()));
    bytes += batch.back().response.size();
  }
  return batch;
}

std::string answer_line(const RewardOutcome& outcome, const std::string& where,
                        Failures& failures) {
  ++failures.lines;
  if (const auto* score = std::get_if<double>(&outcome))
    return OrderedJson{{"score", *score}}.dump();
  const auto& error = std::get<Error>(outcome);
  if (failures.failed++ == 0) failures.first = fmt::format("{}: {}", where, error.what());
  return OrderedJson{{"error", error.what()}, {"code", error_code_name(error.code())}}.dump();
}

void run_score(const ScoreFlags& flags) {
  JsonLineReader reader(flags.input);
  TextOutput output(flags.output);
  const auto rewards = start_rewards(flags.reward);
  Failures failures;
  std::vector<std::string> where;
  for (auto batch = read_batch(reader, where); !batch.empty(); batch = read_batch(reader, where)) {
    const auto outcomes = rewards->score(batch);
    for (size_t i = 0; i < outcomes.size(); ++i) {
      output.write_line(answer_line(outcomes[i], where[i], failures));
    }
    output.flush();
  }
  output.finish();
  if (failures.failed > 0) {
    fail(ErrorCode::kFailedPrecondition, "{} of {} lines could not be scored; the first is {}",
         failures.failed, failures.lines, failures.first);
  }
}

}  // namespace

void add_score_command(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("score", "Scores of responses, by a reward type, as JSON lines");
  auto flags = std::make_shared<ScoreFlags>();  // shared: parse and work are two callbacks
  add_reward_flags(*command, "--type", flags->reward);
  command->add_option("--input", flags->input, "JSONL file, - for stdin")->capture_default_str();
  command->add_option("--output", flags->output, "JSONL file, - for stdout")->capture_default_str();
  command->footer(
      "One object a line: {\"response\": \"..\", \"label\": any} -> {\"score\": 1.0}, scored in a "
      "limited\nprocess as in training. A line that cannot be scored gives {\"error\": \"..\", "
      "\"code\": \"..\"},\nand the exit code is 1 after the last line.\n"
      "Example:\n  echo '{\"response\": \"It is 4.\", \"label\": 4}' | nibble score --type "
      "last_number");
  command->callback([flags, &context] { context.run = [flags] { run_score(*flags); }; });
}

}  // namespace nibble
