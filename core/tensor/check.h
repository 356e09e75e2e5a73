#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace nibble {

/// "float32 cpu [3, 4]": dtype, device, shape; for messages.
std::string describe(const at::Tensor& tensor);

/// Wants a contiguous float32 CPU matrix with `cols` columns; throws Error{kInternal} naming
/// `what`.
void check_matrix(const at::Tensor& tensor, int64_t cols, const char* what);

}  // namespace nibble
