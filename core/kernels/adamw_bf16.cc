#include <cmath>

#include "core/kernels/adamw.h"

namespace nibble::kernels {

// The operations of adamw_cpu.h, one element at a time: drawing the rounding takes longer.
void adamw_bf16(float* master, const Bf16Moments& moments, const float* grad, int64_t count,
                const AdamwParams& p, const Parallel& parallel) {
  constexpr int64_t kGrain = 16384;
  const double correction1 =
      1.0 - std::pow(static_cast<double>(p.beta1), static_cast<double>(p.step));
  const double correction2 =
      1.0 - std::pow(static_cast<double>(p.beta2), static_cast<double>(p.step));
  const auto step_size = static_cast<float>(p.lr / correction1);
  const auto root_scale = static_cast<float>(std::sqrt(correction2));
  const float keep = 1.0f - p.lr * p.weight_decay;
  const float rest1 = 1.0f - p.beta1, rest2 = 1.0f - p.beta2;
  const quant::MomentDraw draw = moments.draw(p);
  parallel.run(count, kGrain, [&](int64_t begin, int64_t end) {
    PhiloxWords words{};
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t place = moments.first + static_cast<uint64_t>(i);
      if (i == begin || place % 4 == 0) words = quant::moment_words(draw, place / 4);
      const float g = grad[i] * p.grad_scale;
      const float m = quant::bf16_to_float(moments.m[i]) * p.beta1 + g * rest1;
      const float v = quant::bf16_to_float(moments.v[i]) * p.beta2 + g * g * rest2;
      moments.m[i] = quant::round_first_moment(m, words.word[place % 4]);
      moments.v[i] = quant::round_second_moment(v, words.word[place % 4]);
      const float denominator = std::sqrt(v) / root_scale + p.eps;
      master[i] = master[i] * keep - step_size * (m / denominator);
    }
  });
}

}  // namespace nibble::kernels
