#pragma once

#include <string_view>

#include "core/kernels/activation.h"
#include "core/kernels/adamw.h"
#include "core/kernels/attention.h"
#include "core/kernels/gptq.h"
#include "core/kernels/held_pack.h"
#include "core/kernels/linear.h"
#include "core/kernels/log_softmax.h"
#include "core/kernels/norm.h"
#include "core/kernels/quantize.h"
#include "core/kernels/rope.h"
#include "core/kernels/router.h"

namespace nibble::kernels {

enum class Isa { kScalar, kAvx2, kAvx512 };
std::string_view isa_name(Isa isa);

/// Whether this processor runs it.
bool isa_is_available(Isa isa);

/// The kernels of one instruction set. The public functions use selected_isa(); tests compare all.
struct IsaTable {
  decltype(&kernels::linear) linear;
  void (*linear_many)(const Product* products, int64_t count, const Parallel& parallel);
  decltype(&kernels::dequantize) dequantize;
  decltype(&kernels::rms_norm) rms_norm;
  decltype(&kernels::rms_norm_backward) rms_norm_backward;
  decltype(&kernels::rope) rope;
  decltype(&kernels::silu_mul) silu_mul;
  decltype(&kernels::silu_mul_backward) silu_mul_backward;
  decltype(&kernels::add) add;
  decltype(&kernels::round_to_bf16) round_to_bf16;
  decltype(&kernels::embed) embed;
  decltype(&kernels::embed_backward) embed_backward;
  decltype(&kernels::attention) attention;
  decltype(&kernels::attention_backward) attention_backward;
  decltype(&kernels::router_top_k) router_top_k;
  decltype(&kernels::router_backward) router_backward;
  decltype(&kernels::combine_experts) combine_experts;
  decltype(&kernels::log_softmax_stats) log_softmax_stats;
  decltype(&kernels::log_prob_backward) log_prob_backward;
  int32_t (*sample_row)(const float* logits, int64_t vocab, float temperature, float floor,
                        double uniform);
  int64_t (*quantize_groups)(const float* master, int64_t group, int64_t begin, int64_t end,
                             uint32_t* words, uint16_t* scale, bool* is_overflow);
  HeldGroupsResult (*hold_groups)(const HeldGroups& groups);
  int64_t (*cast_bf16)(const float* master, int64_t begin, int64_t end, uint16_t* bf16);
  void (*hash_words)(const uint32_t*, int64_t, int64_t, uint64_t, uint64_t*, uint64_t*);
  void (*hash_bf16)(const uint16_t*, int64_t, int64_t, uint64_t, uint64_t*, uint64_t*);
  decltype(&kernels::adamw) adamw;
  double (*square_block)(const float* x, int64_t count);
  /// Weighted square error of one group under each of kScaleLanes scales (positive).
  void (*group_errors)(const uint16_t* weight, const float* importance, int64_t count,
                       const quant::GridLimits& limits, const float* scales, float* errors);
  /// Rows [begin, end) of a block.
  void (*gptq_rows)(const GptqBlock& block, const quant::GridLimits& limits, int64_t begin,
                    int64_t end);
};

/// Throws Error{kFailedPrecondition} if this processor lacks it.
const IsaTable& isa_table(Isa isa);

/// The best available instruction set, capped by NIBBLE_CPU_ISA; decided once.
Isa selected_isa();

}  // namespace nibble::kernels
