#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/command.h"
#include "cli/run_config.h"

namespace nibble {

void add_config_command(CLI::App& app, CommandContext& context) {
  struct Flags {
    std::filesystem::path file;
    std::vector<std::string> overrides;
    bool reference = false;
    bool schema = false;
  };
  auto* command = app.add_subcommand("config", "print a job's effective configuration");
  command->footer(
      "Example:\n  nibble config job.yaml --set optimizer.lr=1e-5\n"
      "  nibble config --reference");
  auto flags = std::make_shared<Flags>();
  auto* file = command->add_option("config", flags->file, "YAML file of the job");
  command->add_option("--set", flags->overrides, "overrides a key");
  auto* reference =
      command->add_flag("--reference", flags->reference, "all keys as a Markdown page");
  auto* schema = command->add_flag("--schema", flags->schema, "JSON schema of the file");
  reference->excludes(file);
  schema->excludes(file)->excludes(reference);
  command->callback([flags, &context] {
    if (!flags->reference && !flags->schema && flags->file.empty()) {
      throw CLI::RequiredError("config file, --reference or --schema");
    }
    context.run = [flags] {
      std::string text;
      if (flags->reference) {
        text = config_reference<RunConfig>();
      } else if (flags->schema) {
        text = config_json_schema<RunConfig>("Nibble job") + "\n";
      } else {
        text = effective_yaml(
            load_run_config(flags->file, flags->overrides, read_env(), NamedFiles::kMayBeMissing));
      }
      std::fputs(text.c_str(), stdout);  // main() says so if that fails
    };
  });
}

}  // namespace nibble
