#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace nibble {

/// What the chosen subcommand leaves for main: its work, run after the whole command line has been
/// understood.
struct CommandContext {
  std::function<void()> run;
};

// One function per command, each in <name>_command.cc: declares the flags, and sets `context.run`
// if its command was chosen. `app` and `context` outlive the parse.
void add_convert_command(CLI::App& app, CommandContext& context);
void add_export_command(CLI::App& app, CommandContext& context);
void add_tokenize_command(CLI::App& app, CommandContext& context);
void add_logprobs_command(CLI::App& app, CommandContext& context);
void add_generate_command(CLI::App& app, CommandContext& context);
void add_serve_command(CLI::App& app, CommandContext& context);
void add_score_command(CLI::App& app, CommandContext& context);
void add_eval_command(CLI::App& app, CommandContext& context);
void add_inspect_command(CLI::App& app, CommandContext& context);
void add_doctor_command(CLI::App& app, CommandContext& context);
void add_plan_command(CLI::App& app, CommandContext& context);
void add_bench_command(CLI::App& app, CommandContext& context);
void add_plot_command(CLI::App& app, CommandContext& context);
void add_status_command(CLI::App& app, CommandContext& context);
void add_train_command(CLI::App& app, CommandContext& context);
void add_coordinator_command(CLI::App& app, CommandContext& context);
void add_worker_command(CLI::App& app, CommandContext& context);
void add_config_command(CLI::App& app, CommandContext& context);

}  // namespace nibble
