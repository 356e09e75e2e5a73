#pragma once

#include <cstdint>
#include <filesystem>

#include "convert/model_output.h"

namespace nibble {

/// What becomes of a training checkpoint's weights.
struct CheckpointExport {
  std::filesystem::path checkpoint;
  std::filesystem::path side_files;  ///< directory with the tokenizer and the like; empty: none
  ModelOutput::Place output;
  bool packed = false;  ///< INT4 as served; false: the same values in BF16
};

/// Writes a training checkpoint's weights as they were served at its step into a Hugging Face
/// directory. Packed, the tensors and their weights_sha256 are those served; in BF16 they are the
/// values that these stand for (w'), not the masters, with what adapters add to them. Either the
/// whole directory appears or nothing. Returns the bytes of the tensors. Throws Error naming what
/// is wrong; a checkpoint with adapters is not packed.
int64_t export_train_checkpoint(const CheckpointExport& job, const ConvertProgress& progress);

}  // namespace nibble
