#pragma once

#include <cstdint>
#include <optional>

#include "core/kernels/parallel.h"
#include "core/kernels/weight_view.h"
#include "core/quant/hash.h"
#include "core/quant/rows.h"

namespace nibble::kernels {

/// Quantizes and packs in one pass, sym7, bit-equal to quant::quantize_rows + pack_rows.
///   master  float32 [rows, cols], rounded to BF16 first
///   words   uint32 [rows, cols/8], overwritten
///   scale   BF16 bits [rows, cols/group], overwritten
/// Returns the first problem in row-major order, or nothing.
std::optional<quant::QuantizeProblem> quantize_pack_int4(const float* master,
                                                         const quant::GroupShape& shape,
                                                         uint32_t* words, uint16_t* scale,
                                                         const Parallel& parallel);

/// bf16 = round(master), `count` values. Returns the first index that is not finite, or -1.
int64_t cast_bf16(const float* master, int64_t count, uint16_t* bf16, const Parallel& parallel);

/// quant::hash_words and hash_bf16, in parallel.
quant::ContentHash hash_words(const uint32_t* words, int64_t count, uint64_t first,
                              const Parallel& parallel);
quant::ContentHash hash_bf16(const uint16_t* values, int64_t count, uint64_t first,
                             const Parallel& parallel);

/// What differs between two arrays of words of 4-bit codes, or of 16-bit values (statistics of a
/// step).
struct CodeChanges {
  int64_t codes = 0;
  int64_t bytes = 0;
};
struct ValueChanges {
  int64_t values = 0;
  int64_t bytes = 0;
};
CodeChanges count_int4_changes(const uint32_t* a, const uint32_t* b, int64_t count,
                               const Parallel& parallel);
ValueChanges count_value_changes(const uint16_t* a, const uint16_t* b, int64_t count,
                                 const Parallel& parallel);

}  // namespace nibble::kernels
