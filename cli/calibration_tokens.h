#pragma once

#include <cstdint>
#include <filesystem>

#include "convert/convert.h"

namespace CLI {
class App;
}

namespace nibble {

/// Flags that say what a quantization is calibrated with.
struct CalibrationFlags {
  std::filesystem::path data;
  int64_t num_samples = 256;
  int64_t max_sequence_length = 2048;
  int64_t held_out_samples = 8;
  int64_t seed = 0;
};

/// Declares --data-dir, --num-calibration-samples, --max-sequence-length, --held-out-samples and
/// --seed. `flags` outlives the parse.
void add_calibration_flags(CLI::App& command, CalibrationFlags& flags);

/// Reads the data through the model's tokenizer: windows to calibrate with, and after them windows
/// to compare on. Throws Error naming the flag or the file that is wrong.
CalibrationTokens load_calibration_tokens(const CalibrationFlags& flags,
                                          const std::filesystem::path& model);

}  // namespace nibble
