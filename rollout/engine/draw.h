#pragma once

#include <cstdint>
#include <vector>

#include "core/kernels/log_softmax.h"

namespace nibble {

/// A token with its log-probability.
struct TokenLogProb {
  int32_t token = -1;
  float log_prob = 0.0f;
};

/// One token to draw, and what came out.
struct Draw {
  int64_t row = 0;  ///< of the hidden states; several draws may share one
  kernels::SamplingParams sampling;
  double uniform = 0.0;      ///< in [0, 1)
  int32_t given = -1;        ///< not drawn but given: only its log-probability is wanted; -1: drawn
  bool wants_plain = false;  ///< also at temperature 1
  int32_t num_top = 0;       ///< how many of the likeliest tokens are wanted

  int32_t token = -1;             ///< result
  float log_prob = 0.0f;          ///< result: over the full vocabulary at the sampling temperature
  float plain_log_prob = 0.0f;    ///< result if wanted: at temperature 1
  std::vector<TokenLogProb> top;  ///< result if wanted: at temperature 1, the likeliest first

  bool wants_more() const { return wants_plain || num_top > 0; }
};

/// Fills in what a draw wants beyond its token.
///   logits  float32 [vocab], on the host
void complete_draw(const float* logits, int64_t vocab, Draw& draw);

}  // namespace nibble
