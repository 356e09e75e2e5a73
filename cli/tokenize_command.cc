#include <CLI/CLI.hpp>
#include <limits>
#include <memory>
#include <optional>

#include "cli/chat_line.h"
#include "cli/command.h"
#include "cli/json_lines.h"
#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/tokenizer/chat_template.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {
namespace {

struct TokenizeFlags {
  std::filesystem::path model;
  std::string input = "-";
  std::string output = "-";
  bool special = false;
  bool decode = false;
  bool skip_special = false;
};

class LineTokenizer {
 public:
  explicit LineTokenizer(const TokenizeFlags& flags)
      : flags_(flags),
        tokenizer_(std::filesystem::is_directory(flags.model)
                       ? Tokenizer::from_directory(flags.model)
                       : Tokenizer::from_file(flags.model)) {}

  OrderedJson answer(const OrderedJson& line, const std::string& where) {
    const int given = static_cast<int>(line.contains("text")) +
                      static_cast<int>(line.contains("ids")) +
                      static_cast<int>(line.contains("messages"));
    if (given != 1) {
      fail(ErrorCode::kInvalidArgument, "{}: want exactly one of 'text', 'messages' and 'ids'",
           where);
    }
    if (line.contains("ids")) {
      refuse_other_keys(line, {"ids"}, where);
      const auto ids = parse_token_ids(line["ids"], std::numeric_limits<int32_t>::max(),
                                       fmt::format("{}: ids", where));
      for (size_t i = 0; i < ids.size(); ++i) {
        if (!tokenizer_.id_to_token_bytes(ids[i]).empty()) continue;
        fail(ErrorCode::kInvalidArgument, "{}: ids[{}] = {} is no token of this tokenizer", where,
             i, ids[i]);
      }
      return {{"text", tokenizer_.decode(ids, {flags_.skip_special})}};
    }
    if (line.contains("messages")) {
      if (!chat_) chat_ = ChatTemplate::of(tokenizer_);
      const ChatLine chat(line, false, where);
      const std::string text = with_context(where, [&] { return chat_->render(chat.request()); });
      // The template has written the special tokens already.
      return flags_.decode ? OrderedJson{{"text", text}}
                           : OrderedJson{{"ids", tokenizer_.encode(text)}};
    }
    refuse_other_keys(line, {"text"}, where);
    if (!line["text"].is_string()) {
      fail(ErrorCode::kInvalidArgument, "{}: 'text' is not a string", where);
    }
    const auto ids = tokenizer_.encode(line["text"].get<std::string>(), {flags_.special});
    if (!flags_.decode) return {{"ids", ids}};
    return {{"text", tokenizer_.decode(ids, {flags_.skip_special})}};
  }

 private:
  const TokenizeFlags& flags_;
  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_;
};

void run_tokenize(const TokenizeFlags& flags) {
  if (!std::filesystem::exists(flags.model)) {
    fail(ErrorCode::kNotFound, "model directory '{}' does not exist", flags.model.string());
  }
  LineTokenizer tokenizer(flags);
  JsonLineReader reader(flags.input);
  TextOutput output(flags.output);
  OrderedJson line;
  while (reader.next(line)) output.write_line(tokenizer.answer(line, reader.where()).dump());
  output.finish();
}

}  // namespace

void add_tokenize_command(CLI::App& app, CommandContext& context) {
  CLI::App* command =
      app.add_subcommand("tokenize", "Texts and chats to token ids and back, as JSON lines");
  auto flags = std::make_shared<TokenizeFlags>();  // shared: parse and work are two callbacks
  command->add_option("--model", flags->model, "Hugging Face directory, or a tokenizer.json")
      ->required();
  command->add_option("--input", flags->input, "JSONL file, - for stdin")->capture_default_str();
  command->add_option("--output", flags->output, "JSONL file, - for stdout")->capture_default_str();
  command->add_flag("--special", flags->special,
                    "add the tokenizer's special tokens to 'text', e.g. <|begin_of_text|>");
  command->add_flag("--decode", flags->decode,
                    "answer with text: decoded ids, or the chat as the template renders it");
  command->add_flag("--skip-special", flags->skip_special, "leave special tokens out of the text");
  command->footer(
      "One object a line in and out:\n"
      "  {\"text\": \"Hi\"}                        -> {\"ids\": [13048]}\n"
      "  {\"messages\": [...], \"add_generation_prompt\": true, \"tools\": [...], ...} -> "
      "{\"ids\": [...]}\n"
      "      (every other key is a variable of the chat template, e.g. \"enable_thinking\": "
      "false)\n"
      "  {\"ids\": [13048]}                      -> {\"text\": \"Hi\"}\n"
      "Example:\n  echo '{\"text\": \"What is 2+2?\"}' | nibble tokenize --model "
      "models/Qwen3-0.6B");
  command->callback([flags, &context] { context.run = [flags] { run_tokenize(*flags); }; });
}

}  // namespace nibble
