#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/engine_ranks.h"
#include "cli/eval_report.h"
#include "cli/eval_sets.h"
#include "cli/set_evaluation.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

void run_eval(const EvalFlags& flags) {
  const std::vector<EvalSet> sets = read_eval_sets(flags);
  EvalOutput output(flags.output);
  const TextCodec codec(flags.sampling.model.model, flags.sampling.tokenizer);
  (void)codec.encoder();
  const auto model = load_model(flags.sampling.model);
  std::vector<SetResult> results;
  for (const EvalSet& set : sets) {
    results.push_back(evaluate_set(set, *model, codec));
    output.append(flags, set, results.back());
  }
  if (flags.json) {
    print_eval_json(flags, sets, results);
  } else {
    print_eval(flags, sets, results);
  }
  for (size_t i = 0; i < sets.size(); ++i) {
    const EvalStats& stats = results[i].stats;
    if (stats.unscored == 0) continue;
    fail(ErrorCode::kFailedPrecondition,
         "{}: {} of {} samples could not be scored and are left out; the first is of {}",
         sets[i].name, stats.unscored, stats.scored + stats.unscored, results[i].first_error);
  }
}

}  // namespace

void add_eval_command(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("eval", "avg@K and pass@k of a model on data sets with labels");
  auto flags = std::make_shared<EvalFlags>();  // shared: parse and work are two callbacks
  add_sampling_flags(*command, flags->sampling);
  command->add_option("--data", flags->data,
                      "[NAME=]PATH of JSON lines of prompts and labels; may be repeated");
  command->add_option("--sets", flags->sets,
                      "YAML file of data sets that have sampling or rewards of their own");
  command
      ->add_option("--prompt-key", flags->prompt_key, "field: a string, or a list of chat messages")
      ->capture_default_str();
  command->add_option("--label-key", flags->label_key, "field: what the reward compares with")
      ->capture_default_str();
  add_reward_flags(*command, "--reward", flags->reward);
  command->get_option("--reward")->required(false);
  command->add_option("--output", flags->output,
                      "gets a line of JSON for each set, with the rewards of every prompt");
  command->add_flag("--json", flags->json, "print one JSON object");
  command->footer(
      "avg@K is the mean reward of K samples a prompt, +- its standard error over prompts; pass@k "
      "the\nchance that one of k samples has a reward of 1 (unbiased, from all K). Of several sets "
      "there is\nthe mean over sets too. A file of sets:\n"
      "  sets:\n"
      "    - { name: math, data: math.jsonl, reward: last_number, samples: 16, temperature: 0.6,\n"
      "        top_p: 0.95, max_new_tokens: 512 }\n"
      "    - { data: gsm.jsonl }      # named gsm; all else as the flags say\n"
      "Keys: name data reward samples temperature top_p top_k max_new_tokens seed stop prompt_key\n"
      "label_key.\n"
      "Example:\n  nibble eval --model models/Qwen3-0.6B-int4 --data test.jsonl --reward "
      "last_number \\\n      --samples 8 --temperature 1 --max-new-tokens 256");
  command->callback([flags, &context] {
    context.run = [flags] { run_on_ranks(flags->sampling.model, [&] { run_eval(*flags); }); };
  });
}

}  // namespace nibble
