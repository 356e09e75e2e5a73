#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "convert/gptq.h"
#include "convert/held_out.h"
#include "convert/layer_quantizer.h"
#include "convert/matrix_report.h"
#include "convert/model_output.h"
#include "convert/token_stream.h"
#include "core/ops/backend.h"
#include "core/spec/quantization.h"

namespace nibble {

struct ConvertOptions {
  std::filesystem::path
      input_dir;  ///< Hugging Face directory; a quantized one is dequantized first
  ModelOutput::Place output;
  QuantMethod method = QuantMethod::kGptq;
  int bits = 4;  ///< 4: W4A16, 8: W8A16
  GptqOptions gptq;
  std::optional<QuantTargets> targets;  ///< nullopt: default_targets()
  std::vector<std::string> ignore;      ///< modules left in BF16, besides what targets leaves out
  bool trust_remote_code = false;       ///< accept a config with auto_map; nothing is ever run
  StreamPlace streams;  ///< where activations are between layers; a spill goes beside the output
  bool spills = false;
};

/// Text in the model's tokens, as windows.
struct CalibrationTokens {
  std::vector<std::vector<int32_t>> calibration;
  std::vector<std::vector<int32_t>> held_out;  ///< may be empty: nothing is compared then
  std::string digest;                          ///< of both
};

struct ConvertReport {
  QuantizationConfig quantization;
  std::vector<ConvertedMatrix> matrices;  ///< in the order of the checkpoint
  std::optional<HeldOutResult> held_out;
  std::vector<std::string> warnings;
  int64_t input_bytes = 0;
  int64_t output_bytes = 0;
  int64_t calibration_tokens = 0;
  int64_t resumed_layers = 0;  ///< that an interrupted run had done
  double elapsed_ms = 0.0;
};

/// Quantizes a checkpoint and writes an INT4 (or INT8) directory that Nibble, Transformers, vLLM
/// and SGLang read: compressed-tensors "pack-quantized". Either the whole directory appears or
/// nothing; with Leftover::kContinue what an interrupted run left is gone on from, to the same
/// bytes.
///
/// Without `tokens` (QuantMethod::kNearest only) one parameter is in memory at a time; with them
/// one decoder layer, its statistics, and the residual streams.
/// Throws Error naming what is wrong: a taken output, an input that is not BF16 or incomplete, a
/// weight that is not finite, a group size that does not divide, a full disk.
ConvertReport convert(const ConvertOptions& options, const CalibrationTokens* tokens,
                      const ops::Backend& backend, const ConvertProgress& progress);

}  // namespace nibble
