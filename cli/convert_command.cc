#include <CLI/CLI.hpp>
#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

#include <algorithm>
#include <array>
#include <memory>

#include "cli/calibration_tokens.h"
#include "cli/command.h"
#include "cli/convert_report.h"
#include "cli/model_flags.h"
#include "cli/progress.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "core/ops/bf16_cpu_backend.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

constexpr std::array<int64_t, 3> kGroupSizes = {32, 64, 128};
constexpr int64_t kMostFileMb = 10'000'000;
constexpr int kMostThreads = 1024;

struct ConvertFlags {
  ConvertOptions options;
  CalibrationFlags calibration;
  std::string method = "gptq";
  std::string quant_type = "W4A16";
  std::string grid = "sym7";
  std::string scale_search;  // empty: as the method has it
  std::string act_order = "static";
  std::string targets;
  std::string device = "auto";
  std::vector<int64_t> compare;
  std::vector<std::string> of_text;  // flags that were given and need --data-dir
  int64_t max_file_mb = 5000;
  int threads = 0;
  bool resume = false;
  bool json = false;
};

void check_choice(const char* flag, const std::string& value,
                  const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  fail(ErrorCode::kInvalidArgument, "{} '{}' is unknown; use {}", flag, value,
       fmt::join(choices, " or "));
}

void check_group_size(const char* flag, int64_t group_size) {
  if (std::find(kGroupSizes.begin(), kGroupSizes.end(), group_size) != kGroupSizes.end()) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be 32, 64 or 128", flag, group_size);
}

void check_flags(const ConvertFlags& flags) {
  check_choice("--method", flags.method, {"gptq", "rtn"});
  check_choice("--quant-type", flags.quant_type, {"W4A16", "W8A16"});
  check_choice("--grid", flags.grid, {"sym7", "sym7p5"});
  if (!flags.scale_search.empty()) {
    check_choice("--scale-search", flags.scale_search, {"none", "mse"});
  }
  check_choice("--actorder", flags.act_order, {"static", "none"});
  check_choice("--device", flags.device, {"auto", "cpu", "cuda"});
  check_group_size("--quant-group-size", flags.options.gptq.group_size);
  for (auto size = flags.compare.begin(); size != flags.compare.end(); ++size) {
    check_group_size("--compare", *size);
    if (std::find(flags.compare.begin(), size, *size) == size) continue;
    fail(ErrorCode::kInvalidArgument, "--compare names {} twice", *size);
  }
  if (flags.quant_type == "W8A16" && flags.grid != "sym7") {
    fail(ErrorCode::kInvalidArgument, "--grid sym7p5 is of 4 bits; leave it out with W8A16");
  }
  if (flags.max_file_mb < 1 || flags.max_file_mb > kMostFileMb) {
    fail(ErrorCode::kInvalidArgument, "--max-file-mb is {}; it must be from 1 to {}",
         flags.max_file_mb, kMostFileMb);
  }
  if (flags.threads < 0 || flags.threads > kMostThreads) {
    fail(ErrorCode::kInvalidArgument, "--threads is {}; it must be from 1 to {}, or left out",
         flags.threads, kMostThreads);
  }
  const double dampening = flags.options.gptq.dampening;
  if (!(dampening > 0.0 && dampening <= 1.0)) {
    fail(ErrorCode::kInvalidArgument, "--dampening-frac is {}; it must be above 0 and at most 1",
         dampening);
  }
  if (flags.compare.empty() && flags.options.output.directory.empty()) {
    fail(ErrorCode::kInvalidArgument, "--output-dir is missing: the INT4 directory to make");
  }
  if (flags.calibration.data.empty() && flags.method == "gptq") {
    fail(ErrorCode::kInvalidArgument,
         "--method gptq needs calibration text: name it with --data-dir, or round to nearest with "
         "--method rtn");
  }
  if (flags.calibration.data.empty() && !flags.of_text.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "{} is of text, and none is given: add --data-dir, or leave it out",
         fmt::join(flags.of_text, ", "));
  }
  if (!flags.compare.empty() && !flags.options.output.directory.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--compare writes nothing; leave --output-dir out, then convert with the size you choose");
  }
  if (!flags.compare.empty() && flags.resume) {
    fail(ErrorCode::kInvalidArgument,
         "--compare leaves nothing behind that --resume could go on from");
  }
  if (!flags.compare.empty() && flags.options.spills) {
    fail(ErrorCode::kInvalidArgument,
         "--spill keeps activations beside the output, and --compare has none; leave one out");
  }
  if (!flags.compare.empty() &&
      (flags.calibration.data.empty() || flags.calibration.held_out_samples == 0)) {
    fail(ErrorCode::kInvalidArgument,
         "--compare measures on held-out text: give --data-dir, and --held-out-samples above 0");
  }
}

ConvertOptions checked_options(const ConvertFlags& flags) {
  check_flags(flags);
  ConvertOptions options = flags.options;
  options.method = flags.method == "gptq" ? QuantMethod::kGptq : QuantMethod::kNearest;
  options.bits = flags.quant_type == "W8A16" ? 8 : 4;
  options.gptq.grid = options.bits == 8        ? quant::Grid::kSym127
                      : flags.grid == "sym7p5" ? quant::Grid::kSym7p5
                                               : quant::Grid::kSym7;
  const bool is_searched =
      flags.scale_search.empty() ? flags.method == "gptq" : flags.scale_search == "mse";
  options.gptq.search = is_searched ? kernels::ScaleSearch::kMse : kernels::ScaleSearch::kNone;
  options.gptq.act_order = flags.act_order == "static";
  if (!flags.targets.empty()) options.targets = parse_quant_targets(flags.targets);
  options.output.max_file_bytes = flags.max_file_mb * 1'000'000;
  if (flags.resume) options.output.leftover = PendingDirectory::Leftover::kContinue;
  return options;
}

// Activations stay on a GPU if they leave it most of its memory.
bool fits_on_device(const ConvertOptions& options, const CalibrationTokens& tokens,
                    int64_t num_variants) {
  const Json config = read_hf_config(options.input_dir);
  // Residual stream, and beside it the widest input within a layer.
  const int64_t width =
      config.value("hidden_size", int64_t{0}) + config.value("intermediate_size", int64_t{0});
  int64_t count = 0;
  for (const auto& window : tokens.calibration) count += std::ssize(window);
  for (const auto& window : tokens.held_out) count += 2 * std::ssize(window);
  return 2 * width * count * num_variants <= ops::free_cuda_bytes() / 4;
}

void compare(const ConvertFlags& flags, const ConvertOptions& options,
             const CalibrationTokens& tokens, const ops::Backend& backend,
             const ConvertProgress& progress) {
  const auto results = compare_group_sizes(options, flags.compare, tokens, backend, progress);
  fmt::print("{}", flags.json ? comparison_json(results) + "\n" : comparison_text(results));
}

// Activations of a layer are tensors of tens of megabytes, made and dropped by the hundred. malloc
// would map each anew, and the kernel clear its pages: a tenth of the time.
void keep_freed_memory() {
#if defined(M_MMAP_THRESHOLD)
  constexpr int kMostBytes = 1 << 30;
  mallopt(M_MMAP_THRESHOLD, kMostBytes);
  mallopt(M_TRIM_THRESHOLD, kMostBytes);
#endif
}

void run_convert(const ConvertFlags& flags) {
  ConvertOptions options = checked_options(flags);
  if (flags.threads > 0) ops::set_num_threads(flags.threads);
  keep_freed_memory();
  std::optional<CalibrationTokens> tokens;
  if (!flags.calibration.data.empty()) {
    tokens = load_calibration_tokens(flags.calibration, options.input_dir);
  }
  if (!tokens && flags.device == "cuda") {
    get_logger("convert")->warn(
        "rounding without --data-dir runs on the CPU, at the speed of the disk");
  }
  const auto gpu = tokens ? open_gpu(flags.device, Numerics::kFast) : nullptr;
  const ops::Backend& backend = gpu ? *gpu : ops::statistics_cpu_backend();
  if (gpu && !options.spills) {
    options.streams.is_on_device =
        fits_on_device(options, *tokens, std::max<int64_t>(1, std::ssize(flags.compare)));
  }
  ProgressLine line("converting");
  const auto progress = [&line](int64_t done_bytes, int64_t total_bytes, const std::string& name) {
    line.update(done_bytes, total_bytes, name);
  };
  if (!flags.compare.empty()) {
    compare(flags, options, *tokens, backend, progress);
    return;
  }
  const ConvertReport report = convert(options, tokens ? &*tokens : nullptr, backend, progress);
  for (const std::string& warning : report.warnings) get_logger("convert")->warn("{}", warning);
  fmt::print("{}", flags.json ? convert_report_json(report, options) + "\n"
                              : convert_report_text(report, options));
}

std::vector<std::string> given_flags_of_text(const CLI::App& command) {
  std::vector<std::string> given;
  for (const char* flag : {"--num-calibration-samples", "--max-sequence-length",
                           "--held-out-samples", "--seed", "--spill"}) {
    if (command.count(flag) > 0) given.push_back(flag);
  }
  return given;
}

void add_quantization_flags(CLI::App& command, ConvertFlags& flags) {
  GptqOptions& gptq = flags.options.gptq;
  command
      .add_option("--method", flags.method,
                  "gptq (calibrated, needs --data-dir) or rtn: round to nearest")
      ->capture_default_str();
  command.add_option("--quant-type", flags.quant_type, "W4A16 or W8A16")->capture_default_str();
  command
      .add_option("--quant-group-size", gptq.group_size, "weights that share a scale: 32, 64, 128")
      ->capture_default_str();
  command
      .add_option("--grid", flags.grid, "sym7 (what Nibble trains) or sym7p5 (llm-compressor's)")
      ->capture_default_str();
  command.add_option("--scale-search", flags.scale_search,
                     "none: scales from the largest weight of a group (default with rtn); mse: "
                     "those with the least error (default with gptq)");
  command
      .add_option("--actorder", flags.act_order,
                  "gptq: static (columns with large inputs first; files keep their order) or none")
      ->capture_default_str();
  command
      .add_option("--dampening-frac", gptq.dampening,
                  "gptq: added to the diagonal of the statistics, of its mean")
      ->capture_default_str();
  command.add_option("--targets", flags.targets,
                     "experts, mlp or linear; default: experts if the model has them, else linear");
  command.add_option("--ignore", flags.options.ignore,
                     "module to leave in BF16: full name or \"re:^...$\"; may be repeated");
}

void add_run_flags(CLI::App& command, ConvertFlags& flags) {
  command
      .add_option("--max-file-mb", flags.max_file_mb, "size of one safetensors file, 10^6 bytes")
      ->capture_default_str();
  command.add_option("--device", flags.device, "cpu, cuda, or auto: a GPU where there is one")
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "CPU threads; default: all");
  command.add_flag("--spill", flags.options.spills,
                   "keep activations in a file beside the output instead of in memory");
  command.add_flag("--resume", flags.resume,
                   "go on from what an interrupted run left, to the same bytes");
  command.add_flag("--trust-remote-code", flags.options.trust_remote_code,
                   "accept a config with auto_map; its code is never run");
  command
      .add_option(
          "--compare", flags.compare,
          "group sizes, such as 32,64,128: print size, KL and perplexity of each; nothing is "
          "written")
      ->delimiter(',');
  command.add_flag("--json", flags.json, "print a report with the error of every layer as JSON");
}

}  // namespace

void add_convert_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "convert", "Quantize a BF16 Hugging Face checkpoint to INT4 (compressed-tensors)");
  auto flags = std::make_shared<ConvertFlags>();  // shared: parse and work are two callbacks
  command->add_option("--input-dir", flags->options.input_dir, "BF16 Hugging Face directory")
      ->required();
  command->add_option("--output-dir", flags->options.output.directory,
                      "INT4 directory to make; must not exist or be empty");
  add_calibration_flags(*command, flags->calibration);
  add_quantization_flags(*command, *flags);
  add_run_flags(*command, *flags);
  command->footer(
      "Example:\n"
      "  nibble convert --input-dir models/Qwen3-0.6B --output-dir models/Qwen3-0.6B-int4 \\\n"
      "      --data-dir data/calibration.jsonl\n"
      "  nibble convert --input-dir models/Qwen3-0.6B --data-dir data/calibration.jsonl \\\n"
      "      --compare 32,64,128\n"
      "  nibble convert --input-dir models/Qwen3-0.6B --output-dir models/Qwen3-0.6B-rtn "
      "--method rtn");
  command->callback([flags, command, &context] {
    flags->of_text = given_flags_of_text(*command);
    context.run = [flags] { run_convert(*flags); };
  });
}

}  // namespace nibble
