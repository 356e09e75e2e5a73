#include <CLI/CLI.hpp>
#include <memory>

#include "cli/checkpoint_summary.h"
#include "cli/command.h"
#include "cli/export_adapter.h"
#include "cli/export_checkpoint.h"
#include "cli/progress.h"
#include "convert/export_bf16.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "trainer/state/checkpoint_reader.h"

namespace nibble {
namespace {

struct ExportFlags {
  std::filesystem::path input_dir;
  std::filesystem::path output_dir;
  std::filesystem::path side_files;
  std::string to;  // empty: as default_target() says
  int64_t max_file_mb = 5000;
  bool resume = false;
};

void check_flags(const ExportFlags& flags, bool is_training) {
  if (flags.to != "bf16" && flags.to != "int4" && flags.to != "peft") {
    fail(ErrorCode::kInvalidArgument, "--to '{}' is unknown; use bf16, int4 or peft", flags.to);
  }
  if (flags.max_file_mb < 1) {
    fail(ErrorCode::kInvalidArgument, "--max-file-mb is {}; it must be at least 1",
         flags.max_file_mb);
  }
  if (!is_training && flags.to == "int4") {
    fail(ErrorCode::kInvalidArgument,
         "--to int4 wants a training checkpoint, which '{}' is not; for a BF16 Hugging Face "
         "directory use `nibble convert`",
         flags.input_dir.string());
  }
  if (!is_training && flags.to == "peft") {
    fail(ErrorCode::kInvalidArgument, "--to peft wants a training checkpoint, which '{}' is not",
         flags.input_dir.string());
  }
  if (!is_training && !flags.side_files.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--side-files goes with a training checkpoint; '{}' is a Hugging Face directory, whose "
         "own files are copied",
         flags.input_dir.string());
  }
  if (!flags.side_files.empty() && !std::filesystem::is_directory(flags.side_files)) {
    fail(ErrorCode::kNotFound, "--side-files '{}' is not a directory", flags.side_files.string());
  }
}

std::string default_target(const std::filesystem::path& input, bool is_training) {
  return is_training && CheckpointReader(input).base() ? "peft" : "bf16";
}

int64_t export_training(const CheckpointExport& job, const std::string& to,
                        const ConvertProgress& progress) {
  return to == "peft" ? export_adapter(job, progress) : export_train_checkpoint(job, progress);
}

const char* weights_name(const std::string& to) {
  if (to == "peft") return "adapter";
  return to == "int4" ? "INT4" : "BF16";
}

void run_export(ExportFlags flags) {
  const bool is_training = is_train_checkpoint(flags.input_dir);
  refuse_run_directory(flags.input_dir);
  if (flags.to.empty()) flags.to = default_target(flags.input_dir, is_training);
  check_flags(flags, is_training);
  const ModelOutput::Place place = {
      flags.output_dir, flags.max_file_mb * 1'000'000,
      flags.resume ? PendingDirectory::Leftover::kReplace : PendingDirectory::Leftover::kRefuse};
  ProgressLine line("exporting");
  const auto progress = [&line](int64_t done, int64_t total, const std::string& name) {
    line.update(done, total, name);
  };
  const bool packed = flags.to == "int4";
  const int64_t bytes =
      is_training
          ? export_training({flags.input_dir, flags.side_files, place, packed}, flags.to, progress)
          : export_bf16(flags.input_dir, place, progress);
  if (is_training && flags.to != "peft" && flags.side_files.empty()) {
    get_logger("export")->warn(
        "'{}' has no tokenizer: a training checkpoint holds none; name the model's directory with "
        "--side-files to have its tokenizer copied",
        flags.output_dir.string());
  }
  fmt::print("{}: {:.1f} MB of {} weights\n", flags.output_dir.string(),
             static_cast<double>(bytes) / 1e6, weights_name(flags.to));
}

}  // namespace

void add_export_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "export", "Write a checkpoint as a Hugging Face directory: INT4 as served, or BF16");
  auto flags = std::make_shared<ExportFlags>();  // shared: parse and work are two callbacks
  command
      ->add_option("--input-dir", flags->input_dir,
                   "training checkpoint, or Hugging Face directory (--to bf16)")
      ->required();
  command->add_option("--output-dir", flags->output_dir, "directory to make")->required();
  command->add_option(
      "--to", flags->to,
      "bf16 (quantized weights dequantized, adapters merged), int4: packed as served, "
      "or peft: the adapters of a LoRA checkpoint. Default: peft for such a one, else "
      "bf16");
  command->add_option("--side-files", flags->side_files,
                      "directory whose tokenizer, chat template and generation config are copied "
                      "beside a training checkpoint's weights");
  command
      ->add_option("--max-file-mb", flags->max_file_mb, "size of one safetensors file, 10^6 bytes")
      ->capture_default_str();
  command->add_flag("--resume", flags->resume, "replace what an interrupted run left");
  command->footer(
      "Example:\n  nibble export --to int4 --input-dir runs/quickstart/checkpoints/step-000040 \\\n"
      "      --side-files models/SmolLM2-135M-Instruct --output-dir out\n"
      "  nibble export --to bf16 --input-dir models/Qwen3-0.6B-int4 --output-dir out\n"
      "  nibble export --to peft --input-dir runs/lora/checkpoints/step-000040 --output-dir out");
  command->callback([flags, &context] { context.run = [flags] { run_export(*flags); }; });
}

}  // namespace nibble
