#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/base/host_device.h"
#include "core/quant/group_codec.h"
#include "core/quant/hash.h"

namespace nibble::quant {

/// What kept a row range from being quantized: the caller names the tensor.
struct QuantizeProblem {
  enum class Kind { kNonFiniteWeight, kOverflow } kind;
  int64_t row = 0;
  int64_t group = 0;
};
const char* problem_text(QuantizeProblem::Kind kind);

/// A 2-D weight cut into groups of `group` contiguous input channels of one row.
struct GroupShape {
  int64_t rows = 0;
  int64_t cols = 0;  ///< multiple of `group`
  int64_t group = 0;
  NIBBLE_HOST_DEVICE int64_t groups_per_row() const { return cols / group; }
};

/// Plain reference loops over whole rows; kernels/quantize is the fast twin, bit for bit.
///   weight  BF16 bits [rows, cols]
///   scale   BF16 bits [rows, cols/group], overwritten
///   code    int8 [rows, cols], overwritten
/// Returns the first problem (row-major), or nothing.
std::optional<QuantizeProblem> quantize_rows(const uint16_t* weight, const GroupShape& shape,
                                             Grid grid, uint16_t* scale, int8_t* code);

/// Packs codes into words [rows, ceil(cols / codes per word)]; `bits` is 4 or 8.
void pack_rows(const int8_t* code, int64_t rows, int64_t cols, int bits, uint32_t* words);
void unpack_rows(const uint32_t* words, int64_t rows, int64_t cols, int bits, int8_t* code);

/// weight = bf16(code * scale), BF16 bits [rows, cols].
void dequantize_rows(const int8_t* code, const uint16_t* scale, const GroupShape& shape,
                     uint16_t* weight);

/// Hash of `count` elements that start at element `first` of their tensor.
ContentHash hash_words(const uint32_t* words, int64_t count, uint64_t first);
ContentHash hash_bf16(const uint16_t* values, int64_t count, uint64_t first);

}  // namespace nibble::quant
