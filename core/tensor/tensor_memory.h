#pragma once

namespace nibble {

/// From now on CPU tensors are counted in memory_count(DeviceKind::kCpu), beside arrays. Tensors
/// that are there already are not. Call it before other threads use torch.
void count_tensor_memory();

}  // namespace nibble
