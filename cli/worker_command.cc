#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/worker_process.h"

namespace nibble {

void add_worker_command(CLI::App& app, CommandContext& context) {
  auto* command = app.add_subcommand("worker", "join a job and serve the role it gives");
  command->footer("Example:\n  nibble worker --join 127.0.0.1:7070");
  auto address = std::make_shared<std::string>();
  command->add_option("--join", *address, "host:port of the coordinator")->required();
  command->callback([address, &context] { context.run = [address] { run_worker(*address); }; });
}

}  // namespace nibble
