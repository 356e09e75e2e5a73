#pragma once

// The table of one instruction set, in the order of IsaTable.
#define NIBBLE_ISA_TABLE                                                                       \
  {                                                                                            \
    &linear_isa, &linear_many_isa, &dequantize_isa, &rms_norm_isa, &rms_norm_backward_isa,     \
        &rope_isa, &silu_mul_isa, &silu_mul_backward_isa, &add_isa, &round_to_bf16_isa,        \
        &embed_isa, &embed_backward_isa, &attention_isa, &attention_backward_isa,              \
        &router_top_k_isa, &router_backward_isa, &combine_experts_isa, &log_softmax_stats_isa, \
        &log_prob_backward_isa, &sample_row_isa, &quantize_groups_isa, &hold_groups_isa,       \
        &cast_bf16_isa, &hash_words_isa, &hash_bf16_isa, &adamw_isa, &square_block_isa,        \
        &group_errors_isa, &gptq_rows_isa                                                      \
  }
