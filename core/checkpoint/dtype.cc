#include "core/checkpoint/dtype.h"

#include <array>

#include "core/base/fail.h"

namespace nibble {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};

constexpr std::array<Row, 10> kTable = {{{DType::kBool, "BOOL", 1},
                                         {DType::kU8, "U8", 1},
                                         {DType::kI8, "I8", 1},
                                         {DType::kI16, "I16", 2},
                                         {DType::kI32, "I32", 4},
                                         {DType::kI64, "I64", 8},
                                         {DType::kF16, "F16", 2},
                                         {DType::kBf16, "BF16", 2},
                                         {DType::kF32, "F32", 4},
                                         {DType::kF64, "F64", 8}}};

}  // namespace

int64_t dtype_bytes(DType dtype) { return kTable[static_cast<size_t>(dtype)].bytes; }

std::string_view dtype_name(DType dtype) { return kTable[static_cast<size_t>(dtype)].name; }

DType parse_dtype(std::string_view name, std::string_view what) {
  for (const Row& row : kTable) {
    if (row.name == name) return row.dtype;
  }
  fail(ErrorCode::kInvalidArgument, "{}: element type '{}' is not supported", what, name);
}

}  // namespace nibble
