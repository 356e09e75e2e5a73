#pragma once

#include <cstdint>
#include <string_view>

namespace nibble {

/// Element types of safetensors files that Nibble reads.
enum class DType { kBool, kU8, kI8, kI16, kI32, kI64, kF16, kBf16, kF32, kF64 };

/// Bytes of one element.
int64_t dtype_bytes(DType dtype);

/// The safetensors name, e.g. "BF16".
std::string_view dtype_name(DType dtype);

/// Throws Error{kInvalidArgument} naming `what` for a type Nibble does not read (FP8, ...).
DType parse_dtype(std::string_view name, std::string_view what);

}  // namespace nibble
