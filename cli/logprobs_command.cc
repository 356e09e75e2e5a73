#include <CLI/CLI.hpp>
#include <cmath>
#include <iterator>
#include <memory>

#include "cli/command.h"
#include "cli/engine_ranks.h"
#include "cli/json_lines.h"
#include "cli/log_prob_path.h"
#include "cli/model_flags.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

struct LogprobsFlags {
  ModelFlags model;
  std::string path = "trainer";
  std::string input = "-";
  std::string output = "-";
  LogProbOptions options;
};

LogProbOptions checked_options(const LogprobsFlags& flags) {
  LogProbOptions options = flags.options;
  if (flags.path != "trainer" && flags.path != "rollout") {
    fail(ErrorCode::kInvalidArgument, "--path '{}' is unknown; use trainer or rollout", flags.path);
  }
  check_model_flags(flags.model);
  if (flags.path == "trainer" && flags.model.has_ranks()) {
    fail(ErrorCode::kInvalidArgument, "--tensor {} goes with --path rollout", flags.model.tensor);
  }
  options.activations = activation_type(flags.model);
  options.numerics = numerics(flags.model);
  if (!(options.temperature > 0.0f) || !std::isfinite(options.temperature)) {
    fail(ErrorCode::kInvalidArgument, "--temperature is {}; it must be > 0", options.temperature);
  }
  if (options.chunk_tokens < 1 || options.chunk_tokens > 65'536) {
    fail(ErrorCode::kInvalidArgument, "--chunk-tokens is {}; it must be from 1 to 65536",
         options.chunk_tokens);
  }
  return options;
}

std::vector<int32_t> read_ids(const OrderedJson& line, const ModelConfig& config,
                              const std::string& where) {
  refuse_other_keys(line, {"input_ids"}, where);
  if (!line.contains("input_ids")) {
    fail(ErrorCode::kInvalidArgument, "{}: key 'input_ids' is missing", where);
  }
  auto ids = parse_token_ids(line["input_ids"], config.vocab, fmt::format("{}: input_ids", where));
  if (ids.empty()) fail(ErrorCode::kInvalidArgument, "{}: input_ids is empty", where);
  if (static_cast<int64_t>(ids.size()) > config.max_position) {
    fail(ErrorCode::kInvalidArgument, "{}: {} tokens, but the model takes at most {}", where,
         ids.size(), config.max_position);
  }
  return ids;
}

// [n][MoE layers][k] of routes by layer.
void append_routes(const ScoredSequence& scored, size_t tokens, std::string& text) {
  text += ", \"routes\": [";
  for (size_t t = 0; t < tokens; ++t) {
    text += t == 0 ? "[" : ", [";
    for (size_t layer = 0; layer < scored.routes.size(); ++layer) {
      const std::vector<int32_t>& route = scored.routes[layer];
      const auto k = static_cast<ptrdiff_t>(route.size() / tokens);
      const auto begin = route.begin() + static_cast<ptrdiff_t>(t) * k;
      fmt::format_to(std::back_inserter(text), "{}[{}]", layer == 0 ? "" : ", ",
                     fmt::join(begin, begin + k, ", "));
    }
    text += "]";
  }
  text += "]";
}

// Floats in the fewest digits that read back as the same float32, so that equal text means equal
// bits.
std::string answer_line(const ScoredSequence& scored, size_t tokens, bool has_routes,
                        const std::string& where) {
  for (size_t i = 0; i < scored.log_prob.size(); ++i) {
    if (std::isfinite(scored.log_prob[i])) continue;
    fail(ErrorCode::kDataLoss,
         "{}: the log-probability of token {} is {}; the weights overflow or hold NaN", where,
         i + 1, scored.log_prob[i]);
  }
  std::string text = fmt::format("{{\"logprobs\": [{}]", fmt::join(scored.log_prob, ", "));
  if (has_routes) append_routes(scored, tokens, text);
  return text + "}";
}

void run_logprobs(const LogprobsFlags& flags) {
  const LogProbOptions options = checked_options(flags);
  JsonLineReader reader(flags.input);
  TextOutput output(flags.output);
  const auto model = load_model(flags.model);
  const ModelSpec& spec = model->spec;
  const auto path = flags.path == "trainer" ? make_trainer_path(*model, options)
                                            : make_rollout_path(*model, flags.model, options);
  OrderedJson line;
  while (reader.next(line)) {
    const auto ids = read_ids(line, spec.config, reader.where());
    output.write_line(
        answer_line(path->score(ids), ids.size(), options.wants_routes, reader.where()));
  }
  output.finish();
}

}  // namespace

void add_logprobs_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "logprobs", "Log-probabilities of given tokens, through the trainer or the rollout side");
  auto flags = std::make_shared<LogprobsFlags>();  // shared: parse and work are two callbacks
  LogProbOptions& options = flags->options;
  add_model_flags(*command, flags->model);
  command
      ->add_option("--path", flags->path,
                   "trainer (whole sequence) or rollout (chunks and KV cache)")
      ->capture_default_str();
  command->add_option("--input", flags->input, "JSONL file, - for stdin")->capture_default_str();
  command->add_option("--output", flags->output, "JSONL file, - for stdout")->capture_default_str();
  command->add_option("--temperature", options.temperature, "divides the logits")
      ->capture_default_str();
  command->add_option("--chunk-tokens", options.chunk_tokens, "rollout: tokens of one step")
      ->capture_default_str();
  command->add_flag("--routes", options.wants_routes,
                    "also \"routes\": [token][MoE layer][k], the chosen experts");
  command->footer(
      "One object a line: {\"input_ids\": [n ids]} -> {\"logprobs\": [n-1 values]}\n"
      "Example:\n  echo '{\"input_ids\": [9707, 11, 1879]}' | \\\n"
      "      nibble logprobs --model models/Qwen3-0.6B-int4 --path rollout");
  command->callback([flags, &context] {
    context.run = [flags] { run_on_ranks(flags->model, [&] { run_logprobs(*flags); }); };
  });
}

}  // namespace nibble
