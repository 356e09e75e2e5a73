#pragma once

// Body of linear.h for one ISA; included only by isa_*.cc.

#include "core/kernels/parallel.h"
#include "core/kernels/simd.h"
#include "core/kernels/simd_int4.h"
#include "core/kernels/weight_view.h"

namespace nibble::kernels {
namespace {

// NT consecutive weight rows, read sixteen inputs at a time. begin_block(k) is called once per
// kBlock inputs (a multiple of every group size is not needed: groups are multiples of 32).
template <int NT>
struct FloatRows {
  static constexpr int64_t kBlock = 32;
  const float* row[NT];
  FloatRows(const float* panel, int64_t cols, int64_t first) {
    for (int j = 0; j < NT; ++j) row[j] = panel + (first + j) * cols;
  }
  void begin_block(int64_t) {}
  F32x16 at(int j, int64_t k) const { return load(row[j] + k); }
};

template <int NT>
struct Bf16Rows {
  const uint16_t* row[NT];
  Bf16Rows(const WeightView& w, int64_t first) {
    for (int j = 0; j < NT; ++j) row[j] = w.bf16() + (first + j) * w.cols;
  }
  void begin_block(int64_t) {}
  F32x16 at(int j, int64_t k) const { return load_bf16(row[j] + k); }
};

template <int NT>
struct Int4Rows {
  const uint32_t* row[NT];
  const uint16_t* scale[NT];
  int64_t group;
  Int4Group current[NT];
  Int4Rows(const WeightView& w, int64_t first) : group(w.group) {
    for (int j = 0; j < NT; ++j) {
      row[j] = w.words() + (first + j) * (w.cols / 8);
      scale[j] = w.scale + (first + j) * (w.cols / w.group);
      current[j] = int4_group(0.0f);  // begin_block(0) sets it; the compiler cannot see that
    }
  }
  void begin_block(int64_t k) {
    if (k % group != 0) return;
    for (int j = 0; j < NT; ++j) current[j] = int4_group(bf16_value(scale[j][k / group]));
  }
  F32x16 at(int j, int64_t k) const { return int4_weights(current[j], row[j] + k / 8); }
};

// acc[i][j] for MT rows of x and NT rows of w, all of K.
template <int MT, int NT, typename Rows>
inline void tile(const float* x, int64_t ldx, Rows rows, int64_t cols, float* y, int64_t ldy) {
  F32x16 acc[MT][NT];
  for (int i = 0; i < MT; ++i) {
    for (int j = 0; j < NT; ++j) acc[i][j] = zero();
  }
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32) {
    rows.begin_block(k);
#pragma GCC unroll 2
    for (int64_t half = k; half < k + 32; half += kLanes) {
      F32x16 w[NT];
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) w[j] = rows.at(j, half);
#pragma GCC unroll 8
      for (int i = 0; i < MT; ++i) {
        const F32x16 xi = load(x + i * ldx + half);
#pragma GCC unroll 8
        for (int j = 0; j < NT; ++j) acc[i][j] = fma(xi, w[j], acc[i][j]);
      }
    }
  }
  if (k < cols) {  // unquantized widths that are 16 mod 32
    rows.begin_block(k);
    for (int j = 0; j < NT; ++j) {
      const F32x16 w = rows.at(j, k);
      for (int i = 0; i < MT; ++i) acc[i][j] = fma(load(x + i * ldx + k), w, acc[i][j]);
    }
  }
  for (int i = 0; i < MT; ++i) {
    if constexpr (NT == 4) {
      store_sums(y + i * ldy, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    } else {
      for (int j = 0; j < NT; ++j) y[i * ldy + j] = reduce_add(acc[i][j]);
    }
  }
}

template <int NT, typename Rows>
inline void tile_rows(const float* x, int64_t m, Rows rows, int64_t cols, float* y, int64_t ldy) {
  int64_t i = 0;
  for (; i + 4 <= m; i += 4) tile<4, NT>(x + i * cols, cols, rows, cols, y + i * ldy, ldy);
  switch (m - i) {
    case 3:
      tile<3, NT>(x + i * cols, cols, rows, cols, y + i * ldy, ldy);
      break;
    case 2:
      tile<2, NT>(x + i * cols, cols, rows, cols, y + i * ldy, ldy);
      break;
    case 1:
      tile<1, NT>(x + i * cols, cols, rows, cols, y + i * ldy, ldy);
      break;
    default:
      break;
  }
}

// Few rows of x: weights are dequantized in registers and read once.
template <template <int> typename Rows>
inline void linear_direct(const float* x, const WeightView& w, int64_t m, float* y, int64_t ldy,
                          int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + 4 <= end; n += 4) tile_rows<4>(x, m, Rows<4>(w, n), w.cols, y + n, ldy);
  for (; n < end; ++n) tile_rows<1>(x, m, Rows<1>(w, n), w.cols, y + n, ldy);
}

template <template <int> typename Rows>
inline void expand_rows(const WeightView& w, int64_t begin, int64_t end, float* panel) {
  for (int64_t n = begin; n < end; ++n) {
    Rows<1> row(w, n);
    float* out = panel + (n - begin) * w.cols;
    for (int64_t k = 0; k < w.cols; k += kLanes) {
      if (k % 32 == 0) row.begin_block(k);
      store(out + k, row.at(0, k));
    }
  }
}

inline void expand(const WeightView& w, int64_t begin, int64_t end, float* panel) {
  if (w.format == WeightFormat::kInt4) {
    expand_rows<Int4Rows>(w, begin, end, panel);
  } else {
    expand_rows<Bf16Rows>(w, begin, end, panel);
  }
}

// 64-byte aligned scratch without std:: templates (see simd.h).
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(__builtin_malloc(static_cast<size_t>(floats) * 4 + 64))) {
    if (data_ == nullptr) __builtin_trap();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { __builtin_free(data_); }
  float* data() const {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(data_) + 63) & ~uintptr_t{63});
  }

 private:
  float* data_;
};

constexpr int64_t kDirectRows = 8;  // up to here, weights are expanded in registers
constexpr int64_t kPanelRows = 48;  // expanded rows a thread keeps in its L2

inline void linear_panels(const float* x, const WeightView& w, int64_t m, float* y, int64_t ldy,
                          int64_t begin, int64_t end) {
  const Scratch panel(kPanelRows * w.cols);
  for (int64_t n0 = begin; n0 < end; n0 += kPanelRows) {
    const int64_t n1 = min_of(n0 + kPanelRows, end);
    expand(w, n0, n1, panel.data());
    for (int64_t i = 0; i < m; i += 4) {
      const int64_t rows = min_of(4, m - i);
      const float* xi = x + i * w.cols;
      float* yi = y + i * ldy;
      int64_t n = n0;
      for (; n + 4 <= n1; n += 4) {
        tile_rows<4>(xi, rows, FloatRows<4>(panel.data(), w.cols, n - n0), w.cols, yi + n, ldy);
      }
      for (; n < n1; ++n) {
        tile_rows<1>(xi, rows, FloatRows<1>(panel.data(), w.cols, n - n0), w.cols, yi + n, ldy);
      }
    }
  }
}

[[maybe_unused]] void linear_isa(const float* x, const WeightView& w, int64_t m, float* y,
                                 int64_t ldy, const Parallel& parallel) {
  if (m <= 0) return;
  // Threads take whole tiles of four output rows.
  const int64_t tiles = (w.rows + 3) / 4;
  const int64_t macs_per_tile = 4 * w.cols * m;
  const int64_t grain = max_of(1, 65536 / macs_per_tile);
  parallel.run(tiles, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * 4;
    const int64_t end = min_of(last * 4, w.rows);
    if (m > kDirectRows) {
      linear_panels(x, w, m, y, ldy, begin, end);
    } else if (w.format == WeightFormat::kInt4) {
      linear_direct<Int4Rows>(x, w, m, y, ldy, begin, end);
    } else {
      linear_direct<Bf16Rows>(x, w, m, y, ldy, begin, end);
    }
  });
}

[[maybe_unused]] void dequantize_isa(const WeightView& w, float* weight, const Parallel& parallel) {
  parallel.run(w.rows, max_of(1, 65536 / w.cols),
               [&](int64_t begin, int64_t end) { expand(w, begin, end, weight + begin * w.cols); });
}

}  // namespace
}  // namespace nibble::kernels
