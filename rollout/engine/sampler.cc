#include "rollout/engine/sampler.h"

#include <cstring>

#include "core/base/fail.h"
#include "core/kernels/linear.h"

namespace nibble {

Sampler::Sampler(Shape shape, const kernels::Parallel& parallel, StepRanks ranks)
    : shape_(shape),
      parallel_(parallel),
      ranks_(ranks),
      hidden_(static_cast<size_t>(shape.max_rows * shape.hidden)),
      logits_(static_cast<size_t>(shape.max_rows * shape.vocab)) {
  if (ranks.group == nullptr) return;
  const auto part =
      static_cast<size_t>(shape.max_rows * head_share(shape.vocab, 0, ranks.world()).rows());
  part_.resize(part);
  parts_.resize(part * static_cast<size_t>(ranks.world()));
}

void Sampler::draw(const float* hidden, const kernels::WeightView& head, std::span<Draw> draws) {
  NIBBLE_CHECK(head.rows == shape_.vocab && head.cols == shape_.hidden,
               "a head of [{}, {}] for [{}, {}]", head.rows, head.cols, shape_.vocab,
               shape_.hidden);
  while (!draws.empty()) {
    const size_t taken = gather(hidden, draws);
    compute_logits(head);
    if (ranks_.rank() == 0) draw_from_logits(draws.first(taken));
    draws = draws.subspan(taken);
  }
}

void Sampler::compute_logits(const kernels::WeightView& head) {
  if (ranks_.group == nullptr) {
    kernels::linear(hidden_.data(), head, num_rows_, logits_.data(), shape_.vocab, parallel_);
    return;
  }
  NIBBLE_CHECK(head.format == kernels::WeightFormat::kBf16, "a quantized head");
  const int world = ranks_.world();
  const RowShard own = head_share(shape_.vocab, ranks_.rank(), world);
  kernels::WeightView rows = head;
  rows.data = head.bf16() + own.begin * head.cols;
  rows.rows = own.rows();
  kernels::linear(hidden_.data(), rows, num_rows_, part_.data(), own.rows(), parallel_);
  const auto count = static_cast<size_t>(num_rows_ * own.rows());
  ranks_.group
      ->all_gather(
          std::as_bytes(std::span(part_).first(count)),
          std::as_writable_bytes(std::span(parts_).first(count * static_cast<size_t>(world))))
      ->join();
  if (ranks_.rank() != 0) return;
  for (int r = 0; r < world; ++r) {
    const RowShard share = head_share(shape_.vocab, r, world);
    for (int64_t i = 0; i < num_rows_; ++i) {
      std::memcpy(logits_.data() + i * shape_.vocab + share.begin,
                  parts_.data() + (r * num_rows_ + i) * share.rows(),
                  static_cast<size_t>(share.rows()) * sizeof(float));
    }
  }
}

// Copies the hidden states of as many distinct rows as the logits have room for; returns the
// number of draws they serve.
size_t Sampler::gather(const float* hidden, std::span<const Draw> draws) {
  logit_row_.clear();
  num_rows_ = 0;
  for (size_t i = 0; i < draws.size(); ++i) {
    if (i == 0 || draws[i].row != draws[i - 1].row) {
      NIBBLE_CHECK(i == 0 || draws[i].row > draws[i - 1].row, "draws are not in order of row");
      if (num_rows_ == shape_.max_rows) return i;
      std::memcpy(hidden_.data() + num_rows_ * shape_.hidden, hidden + draws[i].row * shape_.hidden,
                  static_cast<size_t>(shape_.hidden) * sizeof(float));
      ++num_rows_;
    }
    logit_row_.push_back(num_rows_ - 1);
  }
  return draws.size();
}

void Sampler::draw_from_logits(std::span<Draw> draws) {
  // One draw is one task: rows may differ in temperature, and a row's pass is long enough.
  parallel_.run(static_cast<int64_t>(draws.size()), 1, [&](int64_t begin, int64_t end) {
    const kernels::Serial serial;
    for (int64_t i = begin; i < end; ++i) {
      Draw& draw = draws[static_cast<size_t>(i)];
      const float* logits = logits_.data() + logit_row_[static_cast<size_t>(i)] * shape_.vocab;
      const float temperature =
          draw.sampling.temperature == 0.0f ? 1.0f : draw.sampling.temperature;
      kernels::RowStats stats;
      kernels::log_softmax_stats(logits, 1, shape_.vocab, temperature, &stats, serial);
      draw.token = draw.given >= 0
                       ? draw.given
                       : kernels::sample_token(logits, shape_.vocab, draw.sampling, draw.uniform);
      draw.log_prob = stats.log_prob(logits[draw.token], temperature);
      if (draw.wants_more()) complete_draw(logits, shape_.vocab, draw);
    }
  });
}

}  // namespace nibble
