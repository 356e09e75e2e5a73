#pragma once

#include <cstdint>
#include <filesystem>

#include "convert/model_output.h"

namespace nibble {

/// Writes the BF16 weights w' that a checkpoint is multiplied with: an INT4 or INT8 directory
/// dequantized, a BF16 directory as it is. Either the whole directory appears or nothing. Returns
/// the bytes of the tensors. Errors as in convert_rtn().
int64_t export_bf16(const std::filesystem::path& input_dir, const ModelOutput::Place& output,
                    const ConvertProgress& progress);

}  // namespace nibble
