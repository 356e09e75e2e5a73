#include "core/quant/rows.h"

#include <algorithm>
#include <cmath>

#include "core/quant/bf16.h"
#include "core/quant/pack.h"

namespace nibble::quant {

const char* problem_text(QuantizeProblem::Kind kind) {
  return kind == QuantizeProblem::Kind::kNonFiniteWeight ? "a weight is NaN or infinite"
                                                         : "a dequantized weight overflows BF16";
}

std::optional<QuantizeProblem> quantize_rows(const uint16_t* weight, const GroupShape& shape,
                                             Grid grid, uint16_t* scale, int8_t* code) {
  const int64_t groups = shape.groups_per_row();
  for (int64_t index = 0; index < shape.rows * groups; ++index) {
    const uint16_t* group = weight + index * shape.group;
    float absmax = 0.0f;
    for (int64_t i = 0; i < shape.group; ++i) {
      if (!bf16_is_finite(group[i])) {
        return QuantizeProblem{QuantizeProblem::Kind::kNonFiniteWeight, index / groups,
                               index % groups};
      }
      absmax = std::max(absmax, std::fabs(bf16_to_float(group[i])));
    }
    scale[index] = group_scale(absmax, grid);
    const float s = bf16_to_float(scale[index]);
    for (int64_t i = 0; i < shape.group; ++i) {
      const int q = quantize_code(bf16_to_float(group[i]), s, grid);
      if (!bf16_is_finite(dequantize_code(q, s))) {
        return QuantizeProblem{QuantizeProblem::Kind::kOverflow, index / groups, index % groups};
      }
      code[index * shape.group + i] = static_cast<int8_t>(q);
    }
  }
  return std::nullopt;
}

void pack_rows(const int8_t* code, int64_t rows, int64_t cols, int bits, uint32_t* words) {
  const int per_word = 32 / bits;
  const int64_t row_words = (cols + per_word - 1) / per_word;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < row_words; ++j) {
      uint32_t word = 0;
      for (int k = 0; k < per_word && j * per_word + k < cols; ++k) {
        const int q = code[r * cols + j * per_word + k];
        word |= bits == 4 ? int4_bits(q, k) : int8_bits(q, k);
      }
      words[r * row_words + j] = word;
    }
  }
}

void unpack_rows(const uint32_t* words, int64_t rows, int64_t cols, int bits, int8_t* code) {
  const int per_word = 32 / bits;
  const int64_t row_words = (cols + per_word - 1) / per_word;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const uint32_t word = words[r * row_words + c / per_word];
      const int k = static_cast<int>(c % per_word);
      code[r * cols + c] = static_cast<int8_t>(bits == 4 ? int4_at(word, k) : int8_at(word, k));
    }
  }
}

void dequantize_rows(const int8_t* code, const uint16_t* scale, const GroupShape& shape,
                     uint16_t* weight) {
  for (int64_t i = 0; i < shape.rows * shape.cols; ++i) {
    weight[i] = dequantize_code(code[i], bf16_to_float(scale[i / shape.group]));
  }
}

ContentHash hash_words(const uint32_t* words, int64_t count, uint64_t first) {
  ContentHash hash;
  for (int64_t i = 0; i < count; ++i) {
    hash += hash_element(words[i], first + static_cast<uint64_t>(i));
  }
  return hash;
}

ContentHash hash_bf16(const uint16_t* values, int64_t count, uint64_t first) {
  ContentHash hash;
  for (int64_t i = 0; i < count; ++i) {
    hash += hash_element(values[i], first + static_cast<uint64_t>(i));
  }
  return hash;
}

}  // namespace nibble::quant
