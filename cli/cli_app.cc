#include "cli/cli_app.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <string>
#include <vector>

#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "core/config/nearest.h"

namespace nibble {
namespace {

constexpr const char* kDescription =
    "Reinforcement learning of language models whose weights live in 4 bits.\n"
    "Results go to stdout, messages to stderr; exit code 0: done, 2: bad input, 1: a fault.";

std::string suggestion(const std::string& word, const std::vector<std::string>& known) {
  const std::string nearest = nearest_word(word, known);
  return nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest);
}

[[noreturn]] void refuse_command(const CLI::App& app, const std::string& word) {
  std::vector<std::string> known;
  for (const CLI::App* command : app.get_subcommands({})) known.push_back(command->get_name());
  const std::string near = suggestion(word, known);
  fail(ErrorCode::kInvalidArgument, "unknown command '{}'{}", word,
       near.empty() ? "; `nibble --help` lists them" : near);
}

// "bench sync": a command with those it is part of, but for the program.
std::string full_name(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  if (parent == nullptr) return "";
  const std::string before = full_name(*parent);
  return before.empty() ? command.get_name() : before + " " + command.get_name();
}

bool has_commands(const CLI::App& command) { return !command.get_subcommands({}).empty(); }

// The innermost command that was given, or nullptr.
const CLI::App* chosen_command(const CLI::App& app) {
  const CLI::App* command = nullptr;
  for (const CLI::App* candidate : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (candidate->parsed()) command = candidate;
  }
  if (command == nullptr) return nullptr;
  const CLI::App* inner = chosen_command(*command);
  return inner == nullptr ? command : inner;
}

[[noreturn]] void refuse_argument(const CLI::App& command, const std::string& word) {
  std::vector<std::string> known;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  }
  const std::string flag = word.substr(0, word.find('='));
  const std::string near = suggestion(flag, known);
  const std::string name = full_name(command);
  fail(ErrorCode::kInvalidArgument, "`{}` does not know '{}'{}", name, flag,
       near.empty() ? fmt::format("; see `nibble {} --help`", name) : near);
}

// CLI11's complaint in our words, where ours say more.
[[noreturn]] void refuse(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> rest = app.remaining(true);
  const CLI::App* command = chosen_command(app);
  if (!rest.empty()) {
    const bool is_flag = rest.front().starts_with("-");
    const bool names_no_command = command == nullptr || has_commands(*command);
    if (names_no_command && !is_flag) {
      refuse_command(command == nullptr ? app : *command, rest.front());
    }
    refuse_argument(command == nullptr ? app : *command, rest.front());
  }
  if (command == nullptr && dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    fail(ErrorCode::kInvalidArgument, "no command was given; `nibble --help` lists them");
  }
  const std::string name = command == nullptr ? "" : " " + full_name(*command);
  fail(ErrorCode::kInvalidArgument, "{}; see `nibble{} --help`", error.what(), name);
}

// The library's own reading clamps what does not fit and takes other bases.
std::string decimal_problem(const std::string& text) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range) return text + " does not fit in 64 bits";
  const size_t first = text.starts_with('-') ? 1 : 0;
  const bool padded = text.size() > first + 1 && text[first] == '0';
  if (error != std::errc{} || stop != end || padded) {
    return "'" + text + "' is not a whole number in decimal digits";
  }
  return "";
}

void check_whole_numbers(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands({})) {
    check_whole_numbers(*command);
    for (CLI::Option* option : command->get_options()) {
      if (option->get_type_name() == "INT" || option->get_type_name() == "UINT") {
        option->check(decimal_problem);
      }
    }
  }
}

}  // namespace

std::unique_ptr<ParsedCommand> parse_command_line(int argc, const char* const* argv) {
  auto parsed = std::make_unique<ParsedCommand>();
  parsed->log_level = read_env().log_level.value_or("info");
  check_failpoints();
  CLI::App app(kDescription, "nibble");
  app.require_subcommand(1);
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION);
  app.add_option("--log-level", parsed->log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  app.get_formatter()->column_width(34);
  app.footer("`nibble COMMAND --help` shows a command's flags and an example.");
  add_train_command(app, parsed->context);
  add_coordinator_command(app, parsed->context);
  add_worker_command(app, parsed->context);
  add_config_command(app, parsed->context);
  add_convert_command(app, parsed->context);
  add_export_command(app, parsed->context);
  add_tokenize_command(app, parsed->context);
  add_logprobs_command(app, parsed->context);
  add_generate_command(app, parsed->context);
  add_serve_command(app, parsed->context);
  add_score_command(app, parsed->context);
  add_eval_command(app, parsed->context);
  add_inspect_command(app, parsed->context);
  add_doctor_command(app, parsed->context);
  add_plan_command(app, parsed->context);
  add_bench_command(app, parsed->context);
  add_plot_command(app, parsed->context);
  add_status_command(app, parsed->context);
  check_whole_numbers(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    parsed->context.run = nullptr;
    parsed->text_to_print = app.help();
  } catch (const CLI::CallForVersion& version) {
    parsed->context.run = nullptr;
    parsed->text_to_print = std::string(version.what()) + "\n";
  } catch (const CLI::ParseError& error) {
    refuse(app, error);
  }
  return parsed;
}

}  // namespace nibble
