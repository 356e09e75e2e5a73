#pragma once

#include <memory>

#include "core/comm/process_group.h"

namespace nibble {

/// Buffers in GPU memory over a group that moves host memory: a copy on each side. Results are on
/// the GPU after wait().
std::unique_ptr<ProcessGroup> staged_group(std::unique_ptr<ProcessGroup> inner);

}  // namespace nibble
