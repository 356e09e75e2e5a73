#include "core/kernels/transpose.h"

#include <algorithm>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace nibble::kernels {
namespace {

constexpr int64_t kSide = 8;      // of a square that registers hold
constexpr int64_t kRowTile = 32;  // a cache line of the result

void copy_transposed(const uint16_t* from, int64_t from_stride, int64_t rows, int64_t cols,
                     uint16_t* to, int64_t to_stride) {
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

#if defined(__SSE2__)
// Halves of rows i and i + 4, three times, is a transposition: each time every element's place
// turns by one bit.
void transpose_square(const uint16_t* from, int64_t from_stride, uint16_t* to, int64_t to_stride) {
  __m128i a[kSide];
  __m128i b[kSide];
  for (int i = 0; i < kSide; ++i) {
    a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_stride));
  }
  const auto turn = [](const __m128i* in, __m128i* out) {
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = _mm_unpacklo_epi16(in[i], in[i + 4]);
      out[2 * i + 1] = _mm_unpackhi_epi16(in[i], in[i + 4]);
    }
  };
  turn(a, b);
  turn(b, a);
  turn(a, b);
  for (int i = 0; i < kSide; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), b[i]);
  }
}
#else
void transpose_square(const uint16_t* from, int64_t from_stride, uint16_t* to, int64_t to_stride) {
  copy_transposed(from, from_stride, kSide, kSide, to, to_stride);
}
#endif

}  // namespace

void transpose_bf16(const uint16_t* from, int64_t rows, int64_t cols, uint16_t* to,
                    const Parallel& parallel) {
  parallel.run((cols + kSide - 1) / kSide, 4, [&](int64_t first, int64_t last) {
    for (int64_t r0 = 0; r0 < rows; r0 += kRowTile) {
      const int64_t r1 = std::min(r0 + kRowTile, rows);
      for (int64_t c = first * kSide; c < std::min(last * kSide, cols); c += kSide) {
        const int64_t width = std::min(kSide, cols - c);
        int64_t r = r0;
        for (; width == kSide && r + kSide <= r1; r += kSide) {
          transpose_square(from + r * cols + c, cols, to + c * rows + r, rows);
        }
        copy_transposed(from + r * cols + c, cols, r1 - r, width, to + c * rows + r, rows);
      }
    }
  });
}

}  // namespace nibble::kernels
