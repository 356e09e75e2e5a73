#include "cli/calibration_tokens.h"

#include <CLI/CLI.hpp>
#include <iterator>
#include <limits>

#include "convert/calibration_data.h"
#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSamples = 1'000'000;
constexpr int64_t kMaxWindow = 1 << 20;

void check_range(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from {} to {}", flag, value, least, most);
}

}  // namespace

void add_calibration_flags(CLI::App& command, CalibrationFlags& flags) {
  command.add_option("--data-dir", flags.data,
                     "calibration text: a .jsonl or .parquet file, or a directory of such files, "
                     "with a column `text` or `messages`; --method gptq needs it");
  command
      .add_option("--num-calibration-samples", flags.num_samples,
                  "windows of text to calibrate with")
      ->capture_default_str();
  command.add_option("--max-sequence-length", flags.max_sequence_length, "tokens of a window")
      ->capture_default_str();
  command
      .add_option("--held-out-samples", flags.held_out_samples,
                  "further windows, on which the result is compared with the original; 0: none")
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "of the order in which records are taken")
      ->capture_default_str();
}

CalibrationTokens load_calibration_tokens(const CalibrationFlags& flags,
                                          const std::filesystem::path& model) {
  check_range("--num-calibration-samples", flags.num_samples, 1, kMaxSamples);
  check_range("--max-sequence-length", flags.max_sequence_length, 2, kMaxWindow);
  check_range("--held-out-samples", flags.held_out_samples, 0, kMaxSamples);
  check_range("--seed", flags.seed, 0, std::numeric_limits<int64_t>::max());
  const auto tokenizer = Tokenizer::from_directory(model);
  const PromptEncoder encoder(tokenizer, model.string());
  CalibrationData data = load_calibration_data({flags.data,
                                                flags.num_samples + flags.held_out_samples,
                                                flags.max_sequence_length,
                                                static_cast<uint64_t>(flags.seed),
                                                {},
                                                flags.held_out_samples},
                                               tokenizer, encoder);
  get_logger("convert")->info(
      "calibration: {} windows of {} tokens and {} held out, from {} records of '{}'",
      flags.num_samples, flags.max_sequence_length, flags.held_out_samples, data.num_records,
      flags.data.string());
  CalibrationTokens tokens;
  tokens.digest = fmt::format("{} {}", data.digest, flags.num_samples);
  const auto split = data.windows.begin() + static_cast<ptrdiff_t>(flags.num_samples);
  tokens.held_out.assign(std::make_move_iterator(split),
                         std::make_move_iterator(data.windows.end()));
  data.windows.erase(split, data.windows.end());
  tokens.calibration = std::move(data.windows);
  return tokens;
}

}  // namespace nibble
