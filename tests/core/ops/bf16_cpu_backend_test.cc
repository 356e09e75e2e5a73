// BF16 products of a CPU against float64 sums of the same BF16 operands.
#include "core/ops/bf16_cpu_backend.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "core/kernels/transpose.h"
#include "core/ops/torch_parallel.h"

namespace nibble::ops {
namespace {

// oneDNN computes these on any processor, faster or slower.
const Bf16CpuBackend backend;

at::Tensor rounded(const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kDouble); }

TEST(Bf16CpuBackend, ProductsAreThoseOfRoundedOperands) {
  at::manual_seed(1);
  for (const auto& [tokens, rows, cols] :
       {std::tuple{1, 16, 16}, {7, 96, 80}, {130, 48, 272}, {513, 272, 96}}) {
    const at::Tensor x = at::randn({tokens, cols});
    const at::Tensor weight = at::randn({rows, cols}).to(at::kBFloat16);
    const kernels::WeightView view{
        kernels::WeightFormat::kBf16, weight.const_data_ptr(), nullptr, rows, cols, 0};
    const at::Tensor want = at::mm(rounded(x), weight.to(at::kDouble).t());
    const at::Tensor got = backend.linear(x, view).to(at::kDouble);
    EXPECT_LE(got.sub(want).abs().div(want.abs().add(1e-2)).max().item<double>(), 0x1p-7)
        << tokens << " " << rows << " " << cols;
    EXPECT_TRUE(at::equal(backend.linear_float(x, view), cpu_backend().linear_float(x, view)));
  }
}

// Sums in float32: BF16 ones would be off by a thousand times as much.
TEST(Bf16CpuBackend, StatisticsAreSumsInFloat32) {
  at::manual_seed(2);
  for (const auto& [tokens, cols] : {std::tuple{1, 32}, {33, 48}, {200, 512}, {77, 1040}}) {
    const at::Tensor x = at::randn({tokens, cols}).to(at::kBFloat16).to(at::kFloat);
    const at::Tensor want = at::mm(rounded(x).t(), rounded(x)).mul(2).add(1);
    for (const CpuBackend* either : {static_cast<const CpuBackend*>(&backend), &cpu_backend()}) {
      at::Tensor gram = at::ones({cols, cols});
      either->add_gram(x, gram);
      either->add_gram(x, gram);
      const double error = gram.to(at::kDouble).sub(want).triu().abs().max().item<double>();
      EXPECT_LE(error, 1e-5 * want.abs().max().item<double>())
          << either->name() << " " << tokens << " " << cols;
    }
  }
}

TEST(Bf16CpuBackend, MatricesOfAnyShapeAreTransposed) {
  for (const auto& [rows, cols] :
       {std::tuple{1, 1}, {8, 8}, {5, 70}, {70, 5}, {64, 32}, {33, 41}}) {
    const at::Tensor from = at::randn({rows, cols}).to(at::kBFloat16);
    at::Tensor to = at::empty({cols, rows}, from.options());
    kernels::transpose_bf16(static_cast<const uint16_t*>(from.const_data_ptr()), rows, cols,
                            static_cast<uint16_t*>(to.mutable_data_ptr()), torch_parallel());
    EXPECT_TRUE(at::equal(to, from.t())) << rows << " " << cols;
  }
}

}  // namespace
}  // namespace nibble::ops
