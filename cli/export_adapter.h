#pragma once

#include <cstdint>
#include <vector>

#include "cli/export_checkpoint.h"
#include "core/spec/parameters.h"
#include "trainer/state/checkpoint_reader.h"

namespace nibble {

/// Writes the adapters of a training checkpoint as PEFT keeps them: adapter_model.safetensors with
/// BF16 "base_model.model.<module>.lora_{A,B}.weight", the values that were served, and
/// adapter_config.json (https://huggingface.co/docs/peft/developer_guides/checkpoint). The base is
/// not read. Either the whole directory appears or nothing. Returns the bytes of the tensors.
/// Throws Error{kInvalidArgument} if the checkpoint has none.
int64_t export_adapter(const CheckpointExport& job, const ConvertProgress& progress);

/// A matrix with what its adapter adds: bf16(w' + scale B A), the sum in float32.
///   weight  BF16 bits [rows, cols] of a frozen parameter of the checkpoint; returned as it is if
///   it
///           has no adapter
std::vector<uint16_t> merged(const CheckpointReader& checkpoint, int64_t parameter,
                             std::vector<uint16_t> weight);

}  // namespace nibble
