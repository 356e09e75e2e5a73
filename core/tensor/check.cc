#include "core/tensor/check.h"

#include <fmt/ranges.h>

#include "core/base/fail.h"

namespace nibble {

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  return fmt::format("{} {} [{}]", c10::toString(tensor.scalar_type()), tensor.device().str(),
                     fmt::join(tensor.sizes().begin(), tensor.sizes().end(), ", "));
}

void check_matrix(const at::Tensor& tensor, int64_t cols, const char* what) {
  NIBBLE_CHECK(tensor.dim() == 2 && tensor.size(1) == cols && tensor.is_contiguous() &&
                   tensor.is_cpu() && tensor.scalar_type() == at::kFloat,
               "{}: want contiguous float32 CPU [rows, {}], got {}", what, cols, describe(tensor));
}

}  // namespace nibble
