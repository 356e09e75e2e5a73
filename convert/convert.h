#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "convert/model_output.h"
#include "core/kernels/parallel.h"
#include "core/quant/group_codec.h"
#include "core/spec/quantization.h"

namespace nibble {

struct ConvertOptions {
  std::filesystem::path input_dir;  ///< BF16 Hugging Face directory
  ModelOutput::Place output;
  int bits = 4;  ///< 4: W4A16, 8: W8A16
  int64_t group_size = 32;
  quant::Grid grid = quant::Grid::kSym7;
  std::optional<QuantTargets> targets;  ///< nullopt: default_targets()
  std::vector<std::string> ignore;      ///< modules left in BF16, besides what targets leaves out
  bool trust_remote_code = false;       ///< accept a config with auto_map; nothing is ever run
};

/// What became of one matrix.
struct ConvertedMatrix {
  std::string module;
  int64_t rows = 0;
  int64_t cols = 0;
  double relative_rms_error = 0.0;  ///< |w - w'| / |w|
};

struct ConvertReport {
  QuantizationConfig quantization;
  std::vector<ConvertedMatrix> matrices;  ///< in the order of the checkpoint
  std::vector<std::string> warnings;
  int64_t input_bytes = 0;
  int64_t output_bytes = 0;
  double elapsed_ms = 0.0;
};

/// Rounds a BF16 checkpoint to the nearest codes and writes an INT4 (or INT8) directory that
/// Nibble, Transformers, vLLM and SGLang read: compressed-tensors "pack-quantized". One parameter
/// is in memory at a time. Either the whole directory appears or nothing.
/// Throws Error naming what is wrong: a taken output, an input that is quantized already, not BF16
/// or incomplete, a group size that does not divide, a full disk.
ConvertReport convert_rtn(const ConvertOptions& options, const kernels::Parallel& parallel,
                          const ConvertProgress& progress);

}  // namespace nibble
