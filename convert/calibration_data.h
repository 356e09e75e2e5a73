#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {

struct CalibrationDataOptions {
  std::filesystem::path path;                  ///< *.jsonl, *.parquet, or a directory of such files
  int64_t num_samples = 256;                   ///< windows, held-out ones too
  int64_t max_sequence_length = 2048;          ///< tokens of a window
  uint64_t seed = 0;                           ///< of the order of records
  std::filesystem::path parquet_program = {};  ///< empty: nibble-parquet beside the running program
  int64_t held_out_samples = 0;  ///< of num_samples: for advice, if data is too little
};

struct CalibrationData {
  std::vector<std::vector<int32_t>> windows;  ///< num_samples of max_sequence_length tokens
  int64_t num_records = 0;                    ///< that were tokenized
  int64_t num_tokens = 0;                     ///< of these, end tokens between them included
  std::string digest;  ///< SHA-256 of the windows, hexadecimal: equal for the same data
};

/// Token windows to calibrate a quantization with, the same on every machine for the same files,
/// options and tokenizer.
///
/// A record has `text`, a non-empty string, or `messages`, a chat or a string that holds one as
/// JSON; where both are there, `text` is what counts (a Parquet file that has the column `text` is
/// read by that column alone). A text is encoded with the tokenizer's special tokens, a chat as a
/// whole conversation through the chat template, without a prompt for more and dated
/// 2024-07-26. Records are taken in an order that the seed decides, joined with the tokenizer's end
/// token between them (if it has one) and cut into windows; no more are looked at than it takes, so
/// a bad record may go unnoticed. Memory: the windows and at most 256 MiB of records as text;
/// RecordSet says what a file takes.
///
/// Throws Error{kInvalidArgument} for options out of range, a record that is neither, with file,
/// line or row, and field; for data with too few tokens, with what to lower; and what RecordSet,
/// PromptEncoder and Tokenizer throw.
CalibrationData load_calibration_data(const CalibrationDataOptions& options,
                                      const Tokenizer& tokenizer, const PromptEncoder& encoder);

}  // namespace nibble
