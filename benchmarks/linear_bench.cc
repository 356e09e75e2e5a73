// Exact linear kernel on the CPU beside torch's FP32 GEMM, same shapes, same threads, same run.
//   linear_bench [threads]
// Checks the kernel against double precision first, then prints one JSON line a shape: best of
// interleaved repetitions, rate, and the ratio to torch.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <vector>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/kernels/linear.h"
#include "core/kernels/quantize.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

struct Shape {
  int64_t m, n, k, group;
};

std::vector<float> normal(int64_t count, uint32_t seed, float scale) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(engine);
  return values;
}

void check(const Shape& s, const std::vector<float>& x, const std::vector<float>& w,
           const std::vector<float>& y) {
  std::mt19937 engine(7);
  for (int probe = 0; probe < 200; ++probe) {
    const int64_t i = engine() % s.m;
    const int64_t j = engine() % s.n;
    double want = 0.0;
    for (int64_t c = 0; c < s.k; ++c) {
      want += static_cast<double>(x[static_cast<size_t>(i * s.k + c)]) *
              static_cast<double>(w[static_cast<size_t>(j * s.k + c)]);
    }
    const double got = y[static_cast<size_t>(i * s.n + j)];
    NIBBLE_CHECK(std::fabs(got - want) < 1e-5 * std::sqrt(static_cast<double>(s.k)),
                 "output [{}, {}] is {}, double precision says {}", i, j, got, want);
  }
}

void run(const Shape& s, int threads) {
  const auto x = normal(s.m * s.k, 1, 1.0f);
  const auto master = normal(s.n * s.k, 2, 0.05f);
  std::vector<uint32_t> words(static_cast<size_t>(s.n * s.k / 8));
  std::vector<uint16_t> scale(static_cast<size_t>(s.n * s.k / s.group));
  const auto& parallel = ops::torch_parallel();
  kernels::quantize_pack_int4(master.data(), {s.n, s.k, s.group}, words.data(), scale.data(),
                              parallel);
  const kernels::WeightView view{
      kernels::WeightFormat::kInt4, words.data(), scale.data(), s.n, s.k, s.group};
  std::vector<float> weight(static_cast<size_t>(s.n * s.k));
  kernels::dequantize(view, weight.data(), parallel);
  std::vector<float> y(static_cast<size_t>(s.m * s.n));
  kernels::linear(x.data(), view, s.m, y.data(), s.n, parallel);
  check(s, x, weight, y);
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor tx = at::from_blob(const_cast<float*>(x.data()), {s.m, s.k}, options);
  const at::Tensor tw = at::from_blob(weight.data(), {s.n, s.k}, options);
  at::Tensor ty = at::empty({s.m, s.n}, options);
  double ours = 1e30;
  double torch = 1e30;
  for (int repeat = 0; repeat < 30; ++repeat) {
    Stopwatch clock;
    kernels::linear(x.data(), view, s.m, y.data(), s.n, parallel);
    ours = std::min(ours, clock.restart_ms());
    at::mm_out(ty, tx, tw.t());
    torch = std::min(torch, clock.elapsed_ms());
  }
  const double gflop = 2e-6 * static_cast<double>(s.m * s.n * s.k);
  const double bytes = static_cast<double>(words.size() * 4 + scale.size() * 2);
  fmt::print(
      "{{\"bench\":\"linear_int4\",\"m\":{},\"n\":{},\"k\":{},\"group\":{},\"threads\":{},"
      "\"ms\":{:.4f},\"gflop_per_s\":{:.1f},\"weight_gb_per_s\":{:.2f},\"torch_fp32_ms\":{:.4f},"
      "\"times_torch\":{:.2f}}}\n",
      s.m, s.n, s.k, s.group, threads, ours, gflop / ours, bytes / ours * 1e-6, torch,
      torch / ours);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  nibble::ops::set_num_threads(threads);
  for (const nibble::Shape& shape :
       {nibble::Shape{1, 1536, 576, 32}, nibble::Shape{1, 4096, 4096, 128},
        nibble::Shape{8, 1536, 576, 32}, nibble::Shape{64, 1536, 576, 32},
        nibble::Shape{1024, 1536, 576, 32}, nibble::Shape{1024, 576, 1536, 32},
        nibble::Shape{1024, 4096, 4096, 128}}) {
    nibble::run(shape, threads);
  }
  return 0;
}
