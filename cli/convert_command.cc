#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/progress.h"
#include "convert/convert.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

struct ConvertFlags {
  ConvertOptions options;
  std::string method = "gptq";
  std::string quant_type = "W4A16";
  std::string grid = "sym7";
  std::string targets;
  int64_t max_file_mb = 5000;
  int threads = 0;
  bool resume = false;
  bool json = false;
};

ConvertOptions checked_options(const ConvertFlags& flags) {
  if (flags.method == "gptq") {
    fail(ErrorCode::kUnimplemented,
         "--method gptq is not built yet; use --method rtn (round to nearest, needs no data)");
  }
  if (flags.method != "rtn") {
    fail(ErrorCode::kInvalidArgument, "--method '{}' is unknown; use rtn", flags.method);
  }
  ConvertOptions options = flags.options;
  if (flags.quant_type != "W4A16" && flags.quant_type != "W8A16") {
    fail(ErrorCode::kInvalidArgument, "--quant-type '{}' is unknown; use W4A16 or W8A16",
         flags.quant_type);
  }
  options.bits = flags.quant_type == "W8A16" ? 8 : 4;
  if (flags.grid != "sym7" && flags.grid != "sym7p5") {
    fail(ErrorCode::kInvalidArgument, "--grid '{}' is unknown; use sym7 or sym7p5", flags.grid);
  }
  if (options.bits == 8 && flags.grid != "sym7") {
    fail(ErrorCode::kInvalidArgument, "--grid sym7p5 is of 4 bits; leave it out with W8A16");
  }
  options.grid = options.bits == 8        ? quant::Grid::kSym127
                 : flags.grid == "sym7p5" ? quant::Grid::kSym7p5
                                          : quant::Grid::kSym7;
  constexpr std::array<int64_t, 3> kGroups = {32, 64, 128};
  if (std::find(kGroups.begin(), kGroups.end(), options.group_size) == kGroups.end()) {
    fail(ErrorCode::kInvalidArgument, "--quant-group-size is {}; it must be 32, 64 or 128",
         options.group_size);
  }
  if (!flags.targets.empty()) options.targets = parse_quant_targets(flags.targets);
  if (flags.max_file_mb < 1) {
    fail(ErrorCode::kInvalidArgument, "--max-file-mb is {}; it must be at least 1",
         flags.max_file_mb);
  }
  options.output.max_file_bytes = flags.max_file_mb * 1'000'000;
  if (flags.resume) options.output.leftover = PendingDirectory::Leftover::kReplace;
  return options;
}

std::string report_json(const ConvertReport& report, const ConvertOptions& options) {
  OrderedJson layers = OrderedJson::array();
  for (const ConvertedMatrix& m : report.matrices) {
    layers.push_back({{"module", m.module},
                      {"shape", {m.rows, m.cols}},
                      {"relative_rms_error", m.relative_rms_error}});
  }
  const OrderedJson root = {{"output_dir", options.output.directory.string()},
                            {"method", "rtn"},
                            {"bits", report.quantization.bits},
                            {"group_size", report.quantization.group_size},
                            {"ignore", report.quantization.ignore},
                            {"input_bytes", report.input_bytes},
                            {"output_bytes", report.output_bytes},
                            {"elapsed_ms", report.elapsed_ms},
                            {"warnings", report.warnings},
                            {"layers", layers}};
  return root.dump();
}

void print_report(const ConvertReport& report, const ConvertOptions& options) {
  double sum = 0.0;
  const ConvertedMatrix* worst = &report.matrices.front();
  for (const ConvertedMatrix& m : report.matrices) {
    sum += m.relative_rms_error;
    if (m.relative_rms_error > worst->relative_rms_error) worst = &m;
  }
  fmt::print("{}: {} matrices in {} bits, groups of {}; {:.1f} MB -> {:.1f} MB in {:.1f} s\n",
             options.output.directory.string(), report.matrices.size(), report.quantization.bits,
             report.quantization.group_size, static_cast<double>(report.input_bytes) / 1e6,
             static_cast<double>(report.output_bytes) / 1e6, report.elapsed_ms / 1000.0);
  fmt::print("relative RMS error of a matrix: mean {:.5f}, worst {:.5f} ({})\n",
             sum / static_cast<double>(report.matrices.size()), worst->relative_rms_error,
             worst->module);
}

void run_convert(const ConvertFlags& flags) {
  const ConvertOptions options = checked_options(flags);
  if (flags.threads > 0) ops::set_num_threads(flags.threads);
  ProgressLine line("converting");
  const ConvertReport report =
      convert_rtn(options, ops::torch_parallel(),
                  [&line](int64_t done_bytes, int64_t total_bytes, const std::string& name) {
                    line.update(done_bytes, total_bytes, name);
                  });
  for (const std::string& warning : report.warnings) get_logger("convert")->warn("{}", warning);
  if (flags.json) {
    fmt::print("{}\n", report_json(report, options));
  } else {
    print_report(report, options);
  }
}

}  // namespace

void add_convert_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "convert", "Quantize a BF16 Hugging Face checkpoint to INT4 (compressed-tensors)");
  auto flags = std::make_shared<ConvertFlags>();  // shared: parse and work are two callbacks
  ConvertOptions& options = flags->options;
  command->add_option("--input-dir", options.input_dir, "BF16 Hugging Face directory")->required();
  command
      ->add_option("--output-dir", options.output.directory,
                   "INT4 directory to make; must not exist or be empty")
      ->required();
  command->add_option("--method", flags->method, "gptq (not built yet) or rtn: round to nearest")
      ->capture_default_str();
  command->add_option("--quant-type", flags->quant_type, "W4A16 or W8A16")->capture_default_str();
  command
      ->add_option("--quant-group-size", options.group_size,
                   "weights that share a scale: 32, 64, 128")
      ->capture_default_str();
  command
      ->add_option("--grid", flags->grid, "sym7 (what Nibble trains) or sym7p5 (llm-compressor's)")
      ->capture_default_str();
  command->add_option(
      "--targets", flags->targets,
      "experts, mlp or linear; default: experts if the model has them, else linear");
  command->add_option("--ignore", options.ignore,
                      "module to leave in BF16: full name or \"re:^...$\"; may be repeated");
  command
      ->add_option("--max-file-mb", flags->max_file_mb, "size of one safetensors file, 10^6 bytes")
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "CPU threads; default: all");
  command->add_flag("--resume", flags->resume,
                    "replace what an interrupted run left; rounding starts over, as it is cheap");
  command->add_flag("--trust-remote-code", options.trust_remote_code,
                    "accept a config with auto_map; its code is never run");
  command->add_flag("--json", flags->json, "print a report with the error of every layer as JSON");
  command->footer(
      "Example:\n  nibble convert --input-dir models/Qwen3-0.6B --output-dir models/Qwen3-0.6B-int4"
      " \\\n      --method rtn --quant-group-size 32");
  command->callback([flags, &context] { context.run = [flags] { run_convert(*flags); }; });
}

}  // namespace nibble
