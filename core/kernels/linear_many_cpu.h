#pragma once

// Body of linear() and linear_many() for one ISA; included only by isa_*.cc.

#include "core/kernels/linear.h"
#include "core/kernels/linear_cpu.h"
#include "core/kernels/parallel.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kWindowTiles = 32;       // tiles of x that are copied at a time
constexpr int64_t kChunkMacs = 16384;      // of the smallest piece of work
constexpr int64_t kThreadMacs = 65536;     // fewer are not worth another thread
constexpr int64_t kCopiedFloats = 262144;  // likewise

inline bool is_int4(const WeightView& w) { return w.format == WeightFormat::kInt4; }

// A window of one product's rows of x, and its part of the work of all.
struct WindowedProduct {
  Product p;  // rows of the window only
  float* copy;
  int64_t copy_tiles;   // to copy here; 0: an earlier product has the same
  int64_t chunks;       // of output rows
  int64_t chunk_tiles;  // of four output rows each, in a chunk
  bool is_direct() const { return p.m <= kMaxDirectMt; }
  int64_t rows_a_copy() const { return is_direct() ? p.m : kPanelMt; }
  bool copies_what(const WindowedProduct& other) const {
    return p.x == other.p.x && p.x_row == other.p.x_row && p.m == other.p.m &&
           p.w.cols == other.p.w.cols && is_int4(p.w) == is_int4(other.p.w);
  }
};

inline Product rows_from(const Product& whole, int64_t first, int64_t most) {
  Product p = whole;
  p.m = whole.m <= first ? 0 : min_of(most, whole.m - first);
  p.y += first * p.ldy;
  if (p.x_row != nullptr) {
    p.x_row += first;
  } else {
    p.x += first * p.w.cols;
  }
  return p;
}

// Calls body(item, begin, end) for the parts of [begin, end) that fall to each item, of which
// size(item) consecutive numbers are.
template <typename Size, typename Body>
inline void split_range(const WindowedProduct* items, int64_t count, int64_t begin, int64_t end,
                        const Size& size, const Body& body) {
  int64_t before = 0;
  for (int64_t i = 0; i < count && before < end; ++i) {
    const int64_t n = size(items[i]);
    const int64_t from = max_of(begin, before) - before;
    const int64_t to = min_of(end, before + n) - before;
    if (from < to) body(items[i], from, to);
    before += n;
  }
}

inline void copy_window(const WindowedProduct& item, int64_t begin, int64_t end) {
  const int64_t most = item.rows_a_copy();
  for (int64_t i = begin * most; i < min_of(end * most, item.p.m); i += most) {
    with_rows<kMaxDirectMt>(min_of(most, item.p.m - i), [&]<int MT>() {
      copy_rows<MT>(item.p, i, is_int4(item.p.w), item.copy + i * item.p.w.cols);
    });
  }
}

template <template <int> typename Rows>
inline void multiply_window(const WindowedProduct& item, int64_t begin, int64_t end) {
  const Product& p = item.p;
  if (item.is_direct()) {
    with_rows<kMaxDirectMt>(
        p.m, [&]<int MT>() { linear_direct<MT, Rows>(item.copy, p.w, p.y, p.ldy, begin, end); });
  } else {
    linear_panels<Rows>(item.copy, p.w, p.m, p.y, p.ldy, begin, end);
  }
}

// Fills `items`; returns the floats that their copies take, which begin at `scratch` (may be null
// for a first count).
inline int64_t plan_window(const Product* products, int64_t count, int64_t first,
                           WindowedProduct* items, float* scratch) {
  int64_t floats = 0;
  for (int64_t i = 0; i < count; ++i) {
    WindowedProduct& item = items[i];
    item = {rows_from(products[i], first, kWindowTiles * kPanelMt), nullptr, 0, 0, 1};
    if (item.p.m == 0 || item.p.w.rows == 0) continue;
    const int64_t macs = 4 * item.p.w.cols * item.p.m;
    item.chunk_tiles = max_of(1, kChunkMacs / macs);
    item.chunks = ((item.p.w.rows + 3) / 4 + item.chunk_tiles - 1) / item.chunk_tiles;
    if (i > 0 && items[i - 1].chunks > 0 && item.copies_what(items[i - 1])) {
      item.copy = items[i - 1].copy;
      continue;
    }
    item.copy = scratch + floats;
    item.copy_tiles = (item.p.m + item.rows_a_copy() - 1) / item.rows_a_copy();
    floats += item.p.m * item.p.w.cols;
  }
  return floats;
}

[[maybe_unused]] void linear_many_isa(const Product* products, int64_t count,
                                      const Parallel& parallel) {
  int64_t most_rows = 0;
  for (int64_t i = 0; i < count; ++i) most_rows = max_of(most_rows, products[i].m);
  if (most_rows <= 0) return;
  constexpr int64_t kItemFloats = (sizeof(WindowedProduct) + 3) / 4;
  const Scratch planned(count * kItemFloats);
  auto* items = reinterpret_cast<WindowedProduct*>(planned.data());
  const Scratch copies(plan_window(products, count, 0, items, nullptr));
  for (int64_t first = 0; first < most_rows; first += kWindowTiles * kPanelMt) {
    const int64_t floats = plan_window(products, count, first, items, copies.data());
    int64_t copy_tiles = 0, chunks = 0, macs = 0;
    for (int64_t i = 0; i < count; ++i) {
      copy_tiles += items[i].copy_tiles;
      chunks += items[i].chunks;
      macs += items[i].p.m * items[i].p.w.rows * items[i].p.w.cols;
    }
    if (chunks == 0) continue;
    parallel.run(copy_tiles, max_of(1, kCopiedFloats * copy_tiles / max_of(1, floats)),
                 [&](int64_t begin, int64_t end) {
                   split_range(
                       items, count, begin, end,
                       [](const WindowedProduct& item) { return item.copy_tiles; }, copy_window);
                 });
    parallel.run(chunks, max_of(1, kThreadMacs * chunks / macs), [&](int64_t begin, int64_t end) {
      split_range(
          items, count, begin, end, [](const WindowedProduct& item) { return item.chunks; },
          [](const WindowedProduct& item, int64_t from, int64_t to) {
            const int64_t rows = 4 * item.chunk_tiles;
            const int64_t first_row = from * rows;
            const int64_t last_row = min_of(to * rows, item.p.w.rows);
            if (is_int4(item.p.w)) {
              multiply_window<Int4Rows>(item, first_row, last_row);
            } else {
              multiply_window<Bf16Rows>(item, first_row, last_row);
            }
          });
    });
  }
}

[[maybe_unused]] void linear_isa(const float* x, const WeightView& w, int64_t m, float* y,
                                 int64_t ldy, const Parallel& parallel) {
  const Product product{x, w, m, y, ldy, nullptr};
  linear_many_isa(&product, 1, parallel);
}

}  // namespace
}  // namespace nibble::kernels
