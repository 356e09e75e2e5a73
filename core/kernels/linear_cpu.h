#pragma once

// Body of linear.h for one ISA; included only by isa_*.cc.

#include "core/kernels/linear.h"
#include "core/kernels/parallel.h"
#include "core/kernels/simd.h"
#include "core/kernels/simd_int4.h"
#include "core/kernels/weight_view.h"

namespace nibble::kernels {
namespace {

// Tiles: MT rows of x by NT rows of weights, whose sums fit the registers. x is read from a copy
// [cols / 16][MT][16], one line after the other; of INT4 weights in the lanes in which they decode.
#if defined(__AVX512F__)
constexpr int kPanelMt = 6;
constexpr int kPanelNt = 4;
constexpr int kDirectSums = 16;
#else
constexpr int kPanelMt = 3;
constexpr int kPanelNt = 2;
constexpr int kDirectSums = 4;
#endif
constexpr int kMaxDirectMt = 8;  // up to here, weights are expanded in registers

constexpr int direct_nt(int mt) {
  return 4 * mt <= kDirectSums ? 4 : 2 * mt <= kDirectSums ? 2 : 1;
}

// Weights come from memory once, in the order in which they lie: rows are short, and the
// processor's own prefetching begins anew with each.
constexpr int64_t kFetchAhead = 4096;  // bytes
inline void prefetch(const void* at, int64_t bytes_ahead) {
  __builtin_prefetch(static_cast<const char*>(at) + bytes_ahead);
}

// NT consecutive weight rows, read sixteen inputs at a time. begin_block() is called before every
// 32 inputs in turn: groups are multiples of that.
template <int NT>
struct Bf16Rows {
  static constexpr bool kHasInt4Lanes = false;
  const uint16_t* row[NT];
  Bf16Rows(const WeightView& w, int64_t first) {
    for (int j = 0; j < NT; ++j) row[j] = w.bf16() + (first + j) * w.cols;
  }
  void begin_block() {}
  void fetch_ahead(int64_t k) const {
    for (int j = 0; j < NT; ++j) prefetch(row[j] + k, kFetchAhead);
  }
  F32x16 at(int j, int64_t k) const { return load_bf16(row[j] + k); }
};

template <int NT>
struct Int4Rows {
  static constexpr bool kHasInt4Lanes = true;
  const uint32_t* row[NT];
  const uint16_t* scale[NT];  // of the group that comes next
  int64_t blocks_a_group;
  int64_t blocks_left = 0;  // of this group: counted, for a division takes as long as a block
  Int4Group current[NT];
  Int4Rows(const WeightView& w, int64_t first) : blocks_a_group(w.group / 32) {
    for (int j = 0; j < NT; ++j) {
      row[j] = w.words() + (first + j) * (w.cols / 8);
      scale[j] = w.scale + (first + j) * (w.cols / w.group);
      current[j] = int4_group(0);  // begin_block() sets it; the compiler cannot see that
    }
  }
  void begin_block() {
    if (blocks_left-- > 0) return;
    blocks_left = blocks_a_group - 1;
    for (int j = 0; j < NT; ++j) current[j] = int4_group(*scale[j]++);
  }
  void fetch_ahead(int64_t k) const {
    if (k % 128 != 0) return;  // a line
    for (int j = 0; j < NT; ++j) prefetch(row[j] + k / 8, kFetchAhead);
  }
  F32x16 at(int j, int64_t k) const { return int4_weights(current[j], row[j] + k / 8); }
};

// Weights that were expanded to [cols / 16][NT][16], in the lanes of Rows.
template <int NT, bool is_int4>
struct PanelRows {
  static constexpr bool kHasInt4Lanes = is_int4;
  const float* panel;
  void begin_block() {}
  void fetch_ahead(int64_t) const {}  // is in L2
  F32x16 at(int j, int64_t k) const { return load(panel + k * NT + j * kLanes); }
};

template <int MT, int NT>
inline void add_products(const float* x, const F32x16 (&w)[NT], F32x16 (&acc)[MT][NT]) {
#pragma GCC unroll 8
  for (int i = 0; i < MT; ++i) {
    const F32x16 xi = load(x + i * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < NT; ++j) acc[i][j] = fma(xi, w[j], acc[i][j]);
  }
}

// y[i][j] for MT rows of x and NT rows of w, all of K.
template <int MT, int NT, typename Rows>
inline void tile(const float* x, Rows rows, int64_t cols, float* y, int64_t ldy) {
  F32x16 acc[MT][NT];
  for (int i = 0; i < MT; ++i) {
    for (int j = 0; j < NT; ++j) acc[i][j] = zero();
  }
  F32x16 w[NT];
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32) {
    rows.begin_block();
    rows.fetch_ahead(k);
#pragma GCC unroll 2
    for (int64_t half = k; half < k + 32; half += kLanes) {
#pragma GCC unroll 8
      for (int j = 0; j < NT; ++j) w[j] = rows.at(j, half);
      add_products<MT, NT>(x + half * MT, w, acc);
    }
  }
  if (k < cols) {  // unquantized widths that are 16 mod 32
    rows.begin_block();
    for (int j = 0; j < NT; ++j) w[j] = rows.at(j, k);
    add_products<MT, NT>(x + k * MT, w, acc);
  }
  for (int i = 0; i < MT; ++i) {
    if constexpr (Rows::kHasInt4Lanes) {
      for (int j = 0; j < NT; ++j) acc[i][j] = from_int4_lanes(acc[i][j]);
    }
    if constexpr (NT == 4) {
      store_sums(y + i * ldy, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    } else {
      for (int j = 0; j < NT; ++j) y[i * ldy + j] = reduce_add(acc[i][j]);
    }
  }
}

// Copies MT rows of x, from row `first` on, for tile().
template <int MT>
inline void copy_rows(const Product& p, int64_t first, bool to_int4, float* out) {
  const float* row[MT];
  for (int i = 0; i < MT; ++i) {
    row[i] = p.x + (p.x_row == nullptr ? first + i : p.x_row[first + i]) * p.w.cols;
  }
  for (int64_t k = 0; k < p.w.cols; k += kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < MT; ++i) {
      const F32x16 lanes = load(row[i] + k);
      store(out + k * MT + i * kLanes, to_int4 ? to_int4_lanes(lanes) : lanes);
    }
  }
}

// Calls body<MT>() for a number of rows that is known only now.
template <int kMost, typename Body>
inline void with_rows(int64_t rows, const Body& body) {
  if constexpr (kMost > 1) {
    if (rows < kMost) {
      with_rows<kMost - 1>(rows, body);
      return;
    }
  }
  body.template operator()<kMost>();
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

constexpr int64_t kPanelRows = 48;  // expanded rows a thread keeps in its L2

// Few rows of x, copied: weights are dequantized in registers and read once.
template <int MT, template <int> typename Rows>
inline void linear_direct(const float* x, const WeightView& w, float* y, int64_t ldy, int64_t begin,
                          int64_t end) {
  constexpr int kNt = direct_nt(MT);
  int64_t n = begin;
  for (; n + kNt <= end; n += kNt) tile<MT, kNt>(x, Rows<kNt>(w, n), w.cols, y + n, ldy);
  for (; n < end; ++n) tile<MT, 1>(x, Rows<1>(w, n), w.cols, y + n, ldy);
}

// NT rows to [cols / 16][NT][16].
template <template <int> typename Rows>
inline void expand_panel(const WeightView& w, int64_t first, float* panel) {
  Rows<kPanelNt> rows(w, first);
  for (int64_t k = 0; k < w.cols; k += kLanes) {
    if (k % 32 == 0) {
      rows.begin_block();
      rows.fetch_ahead(k);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kPanelNt; ++j) store(panel + k * kPanelNt + j * kLanes, rows.at(j, k));
  }
}

// Many rows of x, copied in tiles of kPanelMt and one of what is left.
template <template <int> typename Rows>
inline void linear_panels(const float* x, const WeightView& w, int64_t m, float* y, int64_t ldy,
                          int64_t begin, int64_t end) {
  using Panel = PanelRows<kPanelNt, Rows<1>::kHasInt4Lanes>;
  const Scratch panel(kPanelRows * w.cols);
  const auto for_each_tile = [&](const auto& body) {
    for (int64_t i = 0; i < m; i += kPanelMt) {
      with_rows<kPanelMt>(min_of(kPanelMt, m - i), [&]<int MT>() {
        body.template operator()<MT>(x + i * w.cols, y + i * ldy);
      });
    }
  };
  int64_t n0 = begin;
  for (; n0 + kPanelNt <= end;) {
    int64_t n1 = n0;
    for (; n1 + kPanelNt <= min_of(n0 + kPanelRows, end); n1 += kPanelNt) {
      expand_panel<Rows>(w, n1, panel.data() + (n1 - n0) * w.cols);
    }
    for_each_tile([&]<int MT>(const float* xi, float* yi) {
      for (int64_t n = n0; n < n1; n += kPanelNt) {
        tile<MT, kPanelNt>(xi, Panel{panel.data() + (n - n0) * w.cols}, w.cols, yi + n, ldy);
      }
    });
    n0 = n1;
  }
  for_each_tile([&]<int MT>(const float* xi, float* yi) {
    for (int64_t n = n0; n < end; ++n) tile<MT, 1>(xi, Rows<1>(w, n), w.cols, yi + n, ldy);
  });
}

template <template <int> typename Rows>
inline void dequantize_rows_isa(const WeightView& w, float* weight, const Parallel& parallel) {
  parallel.run(w.rows, max_of(1, 65536 / w.cols), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      Rows<1> row(w, n);
      for (int64_t k = 0; k < w.cols; k += kLanes) {
        if (k % 32 == 0) row.begin_block();
        const F32x16 lanes = row.at(0, k);
        store(weight + n * w.cols + k, Rows<1>::kHasInt4Lanes ? from_int4_lanes(lanes) : lanes);
      }
    }
  });
}

[[maybe_unused]] void dequantize_isa(const WeightView& w, float* weight, const Parallel& parallel) {
  if (w.format == WeightFormat::kInt4) {
    dequantize_rows_isa<Int4Rows>(w, weight, parallel);
  } else {
    dequantize_rows_isa<Bf16Rows>(w, weight, parallel);
  }
}

}  // namespace
}  // namespace nibble::kernels
