#include <CLI/CLI.hpp>
#include <memory>

#include "cli/command.h"
#include "cli/progress.h"
#include "convert/export_bf16.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

struct ExportFlags {
  std::filesystem::path input_dir;
  std::filesystem::path output_dir;
  std::string to = "bf16";
  int64_t max_file_mb = 5000;
  bool resume = false;
};

void run_export(const ExportFlags& flags) {
  if (flags.to != "bf16") {
    fail(ErrorCode::kInvalidArgument,
         "--to '{}' is unknown; use bf16 (for INT4 use `nibble convert`)", flags.to);
  }
  if (flags.max_file_mb < 1) {
    fail(ErrorCode::kInvalidArgument, "--max-file-mb is {}; it must be at least 1",
         flags.max_file_mb);
  }
  ProgressLine line("exporting");
  const int64_t bytes = export_bf16(
      flags.input_dir,
      {flags.output_dir, flags.max_file_mb * 1'000'000,
       flags.resume ? PendingDirectory::Leftover::kReplace : PendingDirectory::Leftover::kRefuse},
      [&line](int64_t done_bytes, int64_t total_bytes, const std::string& name) {
        line.update(done_bytes, total_bytes, name);
      });
  fmt::print("{}: {:.1f} MB of BF16 weights\n", flags.output_dir.string(),
             static_cast<double>(bytes) / 1e6);
}

}  // namespace

void add_export_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "export", "Write a checkpoint as a BF16 Hugging Face directory, INT4 weights dequantized");
  auto flags = std::make_shared<ExportFlags>();  // shared: parse and work are two callbacks
  command->add_option("--input-dir", flags->input_dir, "checkpoint to read")->required();
  command->add_option("--output-dir", flags->output_dir, "directory to make")->required();
  command->add_option("--to", flags->to, "bf16")->capture_default_str();
  command
      ->add_option("--max-file-mb", flags->max_file_mb, "size of one safetensors file, 10^6 bytes")
      ->capture_default_str();
  command->add_flag("--resume", flags->resume, "replace what an interrupted run left");
  command->footer(
      "Example:\n  nibble export --to bf16 --input-dir models/Qwen3-0.6B-int4 --output-dir out");
  command->callback([flags, &context] { context.run = [flags] { run_export(*flags); }; });
}

}  // namespace nibble
