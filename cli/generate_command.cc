#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <optional>

#include "cli/chat_line.h"
#include "cli/command.h"
#include "cli/engine_ranks.h"
#include "cli/json_lines.h"
#include "cli/offline_generator.h"
#include "core/base/context.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

struct GenerateFlags {
  SamplingFlags sampling;
  std::string input = "-";
  std::string output = "-";
};

std::vector<int32_t> read_prompt(const OrderedJson& line, const TextCodec& codec, int64_t vocab,
                                 const std::string& where) {
  const int given = static_cast<int>(line.contains("prompt")) +
                    static_cast<int>(line.contains("messages")) +
                    static_cast<int>(line.contains("input_ids"));
  if (given != 1) {
    fail(ErrorCode::kInvalidArgument,
         "{}: want exactly one of 'prompt', 'messages' and 'input_ids'", where);
  }
  if (line.contains("input_ids")) {
    refuse_other_keys(line, {"input_ids"}, where);
    return parse_token_ids(line["input_ids"], vocab, fmt::format("{}: input_ids", where));
  }
  if (line.contains("messages")) {
    const ChatLine chat(line, true, where);
    return with_context(where, [&] { return codec.encoder().encode_chat(chat.request()); });
  }
  refuse_other_keys(line, {"prompt"}, where);
  if (!line["prompt"].is_string()) {
    fail(ErrorCode::kInvalidArgument, "{}: 'prompt' is not a string", where);
  }
  return codec.encoder().encode(line["prompt"].get<std::string>());
}

// Floats in the fewest digits that read back as the same float32.
std::string answer_line(const Completion& done, const TextCodec& codec) {
  const auto text = codec.response_text(done.tokens);
  return fmt::format(
      R"({{"output_ids": [{}], "text": {}, "logprobs": [{}], "finish_reason": "{}"}})",
      fmt::join(done.tokens, ", "), text ? OrderedJson(*text).dump() : "null",
      fmt::join(done.log_probs, ", "), finish_reason_name(done.reason));
}

void run_generate(const GenerateFlags& flags) {
  check_sampling_flags(flags.sampling);
  std::error_code not_there;
  if (flags.input != "-" && std::filesystem::equivalent(flags.input, flags.output, not_there)) {
    fail(ErrorCode::kInvalidArgument, "--output would overwrite --input '{}'; name another file",
         flags.input);
  }
  JsonLineReader reader(flags.input);
  TextOutput output(flags.output);
  const auto model = load_model(flags.sampling.model);
  const TextCodec codec(flags.sampling.model.model, flags.sampling.tokenizer);
  OfflineGenerator generator(*model, codec, flags.sampling);
  bool at_end = false;
  std::optional<Error> wrong;
  while (!at_end || generator.has_work()) {
    // While there is work, a line that is still being written is not waited for.
    while (!at_end && generator.has_room() && (!generator.has_work() || reader.ready())) {
      try {
        OrderedJson line;
        at_end = !reader.next(line);
        if (at_end) break;
        const std::string where = reader.where();
        generator.submit(read_prompt(line, codec, model->spec.config.vocab, where), where);
      } catch (const Error& error) {
        wrong = error;  // what comes before it is answered
        at_end = true;
      }
    }
    if (generator.has_work()) generator.step();
    bool any = false;
    while (const auto samples = generator.take_next()) {
      for (const Completion& done : *samples) output.write_line(answer_line(done, codec));
      any = true;
    }
    if (any) output.flush();
  }
  if (wrong) throw Error(*wrong);
  output.finish();
  generator.finish();
}

}  // namespace

void add_generate_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "generate", "Responses of a model, BF16 or INT4, to prompts, chats or token ids");
  auto flags = std::make_shared<GenerateFlags>();  // shared: parse and work are two callbacks
  add_sampling_flags(*command, flags->sampling);
  command->add_option("--input", flags->input, "JSONL file, - for stdin")->capture_default_str();
  command->add_option("--output", flags->output, "JSONL file, - for stdout")->capture_default_str();
  command->footer(
      "One object a line: {\"prompt\": \"..\"}, {\"messages\": [..]} (every other key is a "
      "variable "
      "of\nthe chat template) or {\"input_ids\": [..]}. Answers come in the order of the input, "
      "--samples\nlines for each: {\"output_ids\": [..], \"text\": \"..\", \"logprobs\": [..], "
      "\"finish_reason\": \"stop\"}\n"
      "(or \"length\"); \"logprobs\" are those of the whole vocabulary at this temperature (at 1 "
      "if greedy).\n"
      "Example:\n  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 2+2?\"}]}' | "
      "\\\n"
      "      nibble generate --model models/Qwen3-0.6B-int4 --max-new-tokens 64 --temperature 0");
  command->callback([flags, &context] {
    context.run = [flags] { run_on_ranks(flags->sampling.model, [&] { run_generate(*flags); }); };
  });
}

}  // namespace nibble
