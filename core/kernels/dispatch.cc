#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/kernels/isa.h"
#include "core/quant/pack.h"

namespace nibble::kernels {

extern const IsaTable kIsaTable_scalar;
extern const IsaTable kIsaTable_avx2;
extern const IsaTable kIsaTable_avx512;

std::string_view isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "scalar";
}

bool isa_is_available(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kScalar:
      break;
  }
  return true;
}

const IsaTable& isa_table(Isa isa) {
  if (!isa_is_available(isa)) {
    fail(ErrorCode::kFailedPrecondition, "this processor has no {}", isa_name(isa));
  }
  return isa == Isa::kAvx512 ? kIsaTable_avx512
         : isa == Isa::kAvx2 ? kIsaTable_avx2
                             : kIsaTable_scalar;
}

Isa selected_isa() {
  static const Isa selected = [] {
    const auto cap = read_env().cpu_isa;
    for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
      const bool allowed = !cap || *cap == "avx512" || (*cap == "avx2" && isa == Isa::kAvx2);
      if (allowed && isa_is_available(isa)) return isa;
    }
    return Isa::kScalar;
  }();
  return selected;
}

namespace {

const IsaTable& table() {
  static const IsaTable& selected = isa_table(selected_isa());
  return selected;
}

}  // namespace

void linear(const float* x, const WeightView& w, int64_t m, float* y, int64_t ldy,
            const Parallel& parallel) {
  const Product product{x, w, m, y, ldy};
  linear_many({&product, 1}, parallel);
}
void linear_many(std::span<const Product> products, const Parallel& parallel) {
  for (const Product& p : products) {
    NIBBLE_CHECK(p.w.cols % 16 == 0 && p.ldy >= p.w.rows,
                 "linear: {} inputs, {} outputs, stride {}", p.w.cols, p.w.rows, p.ldy);
  }
  table().linear_many(products.data(), static_cast<int64_t>(products.size()), parallel);
}
void dequantize(const WeightView& w, float* weight, const Parallel& parallel) {
  table().dequantize(w, weight, parallel);
}
void rms_norm(const float* x, const uint16_t* weight, const NormShape& shape, float* y,
              const Parallel& parallel) {
  table().rms_norm(x, weight, shape, y, parallel);
}
void rms_norm_backward(const float* x, const uint16_t* weight, const float* dy,
                       const NormShape& shape, float* dx, float* dweight,
                       const Parallel& parallel) {
  table().rms_norm_backward(x, weight, dy, shape, dx, dweight, parallel);
}
void rope(float* x, const int32_t* position, int64_t tokens, int64_t heads, const RopeTable& t,
          RopeDirection direction, const Parallel& parallel) {
  table().rope(x, position, tokens, heads, t, direction, parallel);
}
void silu_mul(const float* gate, const float* up, int64_t count, float* out,
              const Parallel& parallel) {
  table().silu_mul(gate, up, count, out, parallel);
}
void silu_mul_backward(const float* gate, const float* up, const float* dout, int64_t count,
                       float* dgate, float* dup, const Parallel& parallel) {
  table().silu_mul_backward(gate, up, dout, count, dgate, dup, parallel);
}
void add(float* x, const float* y, int64_t count, const Parallel& parallel) {
  table().add(x, y, count, parallel);
}
void round_to_bf16(float* x, int64_t count, const Parallel& parallel) {
  table().round_to_bf16(x, count, parallel);
}
void embed(const int32_t* id, int64_t tokens, const uint16_t* weight, int64_t cols, float* out,
           const Parallel& parallel) {
  table().embed(id, tokens, weight, cols, out, parallel);
}
void embed_backward(const int32_t* id, int64_t tokens, int32_t padding, const float* dout,
                    int64_t cols, float* dtable, const Parallel& parallel) {
  table().embed_backward(id, tokens, padding, dout, cols, dtable, parallel);
}

namespace {
void check_attention(const AttentionShape& shape) {
  const int64_t d = shape.head_dim / 16;
  const bool known =
      shape.head_dim % 16 == 0 && ((d >= 1 && d <= 8) || d == 10 || d == 12 || d == 16);
  NIBBLE_CHECK(known && shape.heads % shape.kv_heads == 0,
               "attention: head_dim {} or {} heads on {} key-value heads not supported",
               shape.head_dim, shape.heads, shape.kv_heads);
}
}  // namespace

void attention(const float* q, const float* k, const float* v, const KeyIndex& index,
               const AttentionShape& shape, float* out, float* lse, const Parallel& parallel) {
  check_attention(shape);
  table().attention(q, k, v, index, shape, out, lse, parallel);
}
void attention_backward(const AttentionGradient& gradient, const KeyIndex& index,
                        const AttentionShape& shape, const Parallel& parallel) {
  check_attention(shape);
  table().attention_backward(gradient, index, shape, parallel);
}
void router_top_k(const float* logits, const RouterShape& shape, RouterMode mode, float* prob,
                  int32_t* expert, float* weight, const Parallel& parallel) {
  table().router_top_k(logits, shape, mode, prob, expert, weight, parallel);
}
void router_backward(const float* prob, const int32_t* expert, const float* dweight,
                     const RouterShape& shape, float* dlogits, const Parallel& parallel) {
  table().router_backward(prob, expert, dweight, shape, dlogits, parallel);
}
void combine_experts(const float* part, const float* weight, int64_t tokens, int64_t top_k,
                     int64_t cols, float* y, const Parallel& parallel) {
  table().combine_experts(part, weight, tokens, top_k, cols, y, parallel);
}
void log_softmax_stats(const float* logits, int64_t rows, int64_t vocab, float temperature,
                       RowStats* stats, const Parallel& parallel) {
  table().log_softmax_stats(logits, rows, vocab, temperature, stats, parallel);
}
void log_prob_backward(float* logits, const RowStats* stats, const int32_t* target,
                       const RowGrads& grads, int64_t rows, int64_t vocab, float temperature,
                       const Parallel& parallel) {
  table().log_prob_backward(logits, stats, target, grads, rows, vocab, temperature, parallel);
}
void adamw(float* master, float* m, float* v, const float* grad, int64_t count,
           const AdamwParams& params, const Parallel& parallel) {
  table().adamw(master, m, v, grad, count, params, parallel);
}

double sum_of_squares(const float* x, int64_t count, const Parallel& parallel) {
  constexpr int64_t kBlock = 1 << 16;
  std::vector<double> blocks(static_cast<size_t>((count + kBlock - 1) / kBlock));
  parallel.run(static_cast<int64_t>(blocks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      blocks[static_cast<size_t>(b)] =
          table().square_block(x + b * kBlock, std::min(kBlock, count - b * kBlock));
    }
  });
  return std::accumulate(blocks.begin(), blocks.end(), 0.0);
}

namespace {

void check_groups(const quant::GroupShape& shape) {
  NIBBLE_CHECK(shape.group >= 16 && shape.group <= 128 && shape.group % 16 == 0 &&
                   shape.cols % shape.group == 0,
               "quantize: {} columns in groups of {}", shape.cols, shape.group);
}

void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

std::optional<quant::QuantizeProblem> quantize_pack_int4(const float* master,
                                                         const quant::GroupShape& shape,
                                                         uint32_t* words, uint16_t* scale,
                                                         const Parallel& parallel) {
  check_groups(shape);
  const int64_t groups = shape.rows * shape.groups_per_row();
  std::mutex mutex;
  int64_t first_bad = groups;
  bool first_is_overflow = false;
  parallel.run(groups, 1024, [&](int64_t begin, int64_t end) {
    bool is_overflow = false;
    const int64_t bad =
        table().quantize_groups(master, shape.group, begin, end, words, scale, &is_overflow);
    if (bad < 0) return;
    const std::lock_guard lock(mutex);
    if (bad < first_bad) {
      first_bad = bad;
      first_is_overflow = is_overflow;
    }
  });
  if (first_bad == groups) return std::nullopt;
  using Kind = quant::QuantizeProblem::Kind;
  return quant::QuantizeProblem{first_is_overflow ? Kind::kOverflow : Kind::kNonFiniteWeight,
                                first_bad / shape.groups_per_row(),
                                first_bad % shape.groups_per_row()};
}

HeldPacking pack_held_int4(const HeldMatrix& matrix, const Parallel& parallel) {
  const quant::GroupShape& shape = matrix.shape;
  check_groups(shape);
  const int64_t groups = shape.rows * shape.groups_per_row();
  std::atomic<int64_t> projected = 0;
  std::atomic<int64_t> first_bad = groups;
  parallel.run(groups, 1024, [&](int64_t begin, int64_t end) {
    // The ranges are made here: an instruction set's code must not share inline functions.
    constexpr int64_t kBlock = 64;
    std::array<quant::HeldRange, kBlock> ranges;
    for (int64_t at = begin; at < end; at += kBlock) {
      const int64_t count = std::min(kBlock, end - at);
      std::transform(matrix.scale + at, matrix.scale + at + count, ranges.begin(),
                     quant::held_range);
      const int64_t element = at * shape.group;
      const HeldGroupsResult result = table().hold_groups(
          {matrix.master + element, ranges.data(), shape.group, count, matrix.words + element / 8,
           matrix.projected == nullptr ? nullptr : matrix.projected + element});
      projected += result.projected;
      if (result.first_bad >= 0) lower(first_bad, at + result.first_bad);
    }
  });
  HeldPacking packing{std::nullopt, projected};
  if (first_bad < groups) {
    packing.problem = quant::QuantizeProblem{quant::QuantizeProblem::Kind::kNonFiniteWeight,
                                             first_bad / shape.groups_per_row(),
                                             first_bad % shape.groups_per_row()};
  }
  return packing;
}

int64_t cast_bf16(const float* master, int64_t count, uint16_t* bf16, const Parallel& parallel) {
  constexpr int64_t kBlock = 1 << 14;
  std::atomic<int64_t> first_bad = count;
  parallel.run((count + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    const int64_t bad =
        table().cast_bf16(master, begin * kBlock, std::min(end * kBlock, count), bf16);
    if (bad < 0) return;
    lower(first_bad, bad);
  });
  return first_bad == count ? -1 : first_bad.load();
}

namespace {
template <typename Element, typename Range>
quant::ContentHash hash_parallel(const Element* values, int64_t count, uint64_t first,
                                 const Parallel& parallel, Range range) {
  std::mutex mutex;
  quant::ContentHash total;
  parallel.run(count, 1 << 15, [&](int64_t begin, int64_t end) {
    quant::ContentHash part;
    range(values, begin, end, first, &part.low, &part.high);
    const std::lock_guard lock(mutex);
    total += part;
  });
  return total;
}
}  // namespace

quant::ContentHash hash_words(const uint32_t* words, int64_t count, uint64_t first,
                              const Parallel& parallel) {
  return hash_parallel(words, count, first, parallel, table().hash_words);
}
quant::ContentHash hash_bf16(const uint16_t* values, int64_t count, uint64_t first,
                             const Parallel& parallel) {
  return hash_parallel(values, count, first, parallel, table().hash_bf16);
}

namespace {

// How many places of two arrays differ, by `places_of` a difference, and how many of their bytes.
template <typename Element, typename Places>
std::pair<int64_t, int64_t> count_changes(const Element* a, const Element* b, int64_t count,
                                          const Parallel& parallel, Places places_of) {
  std::atomic<int64_t> places = 0;
  std::atomic<int64_t> bytes = 0;
  parallel.run(count, (1 << 17) / static_cast<int64_t>(sizeof(Element)),
               [&](int64_t begin, int64_t end) {
                 int64_t own_places = 0, own_bytes = 0;
                 for (int64_t i = begin; i < end; ++i) {
                   const auto difference = static_cast<uint32_t>(a[i] ^ b[i]);
                   if (difference == 0) continue;
                   own_places += places_of(difference);
                   own_bytes += std::popcount(quant::nonzero_bytes(difference));
                 }
                 places += own_places;
                 bytes += own_bytes;
               });
  return {places, bytes};
}

}  // namespace

CodeChanges count_int4_changes(const uint32_t* a, const uint32_t* b, int64_t count,
                               const Parallel& parallel) {
  const auto [codes, bytes] = count_changes(a, b, count, parallel, [](uint32_t difference) {
    return std::popcount(quant::nonzero_codes(difference));
  });
  return {codes, bytes};
}

ValueChanges count_value_changes(const uint16_t* a, const uint16_t* b, int64_t count,
                                 const Parallel& parallel) {
  const auto [values, bytes] = count_changes(a, b, count, parallel, [](uint32_t) { return 1; });
  return {values, bytes};
}

int32_t sample_token(const float* logits, int64_t vocab, const SamplingParams& params,
                     double uniform) {
  if (params.temperature == 0.0f) {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab) - logits);
  }
  const bool all = (params.top_k <= 0 || params.top_k >= vocab) && params.top_p >= 1.0f;
  float floor = -std::numeric_limits<float>::infinity();
  if (!all) {
    // Order by logit, ties to the lower id; the floor is the smallest logit that may be drawn, so
    // equal logits at the edge are all kept.
    std::vector<float> sorted(logits, logits + vocab);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    auto keep = static_cast<size_t>(vocab);
    if (params.top_k > 0) keep = std::min(keep, static_cast<size_t>(params.top_k));
    if (params.top_p < 1.0f) {
      double total = 0.0;
      const auto weight = [&](float logit) {
        return std::exp(static_cast<double>((logit - sorted[0]) / params.temperature));
      };
      for (size_t i = 0; i < keep; ++i) total += weight(sorted[i]);
      double sum = 0.0;
      for (size_t i = 0; i < keep; ++i) {
        sum += weight(sorted[i]);
        if (sum >= static_cast<double>(params.top_p) * total) keep = i + 1;
      }
    }
    floor = sorted[std::max<size_t>(keep, 1) - 1];
  }
  return table().sample_row(logits, vocab, params.temperature, floor, uniform);
}

}  // namespace nibble::kernels
