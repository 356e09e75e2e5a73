// Elementwise CUDA kernels, norms and rotary embedding against the CPU's on the same values.
#include "core/kernels_cuda/elementwise.h"

#include "core/kernels/activation.h"
#include "core/kernels/norm.h"
#include "core/kernels_cuda/norm.h"
#include "tests/core/kernels_cuda/gpu_test.h"

namespace nibble::kernels {
namespace {

class ElementwiseCuda : public GpuTest {};

TEST_F(ElementwiseCuda, RmsNormIsTheCpusRoundedOnce) {
  for (const auto& [rows, cols] : {std::pair{3, 64},
                                   {7, 16},
                                   {9, 48},
                                   {70, 128},
                                   {5, 256},
                                   {5, 320},
                                   {5, 576},
                                   {33, 4096},
                                   {1, 8192}}) {
    const NormShape shape{rows, cols, 1e-6f};
    const auto x = random_bf16(rows * cols, 1, 3.0f), weight = random_bf16(cols, 2);
    const auto y = poisoned<uint16_t>(rows * cols);
    const auto d_weight = on_device(weight);
    const WeightView view{WeightFormat::kBf16, d_weight.data(), nullptr, 1, cols, 0};
    cuda::rms_norm(on_device(x).data(), {view, nullptr}, shape, y.data(), nullptr);
    std::vector<float> want(x.size());
    rms_norm(widened(x).data(), weight.data(), shape, want.data(), serial);
    EXPECT_LT(relative_error(widened(on_host(y)), want), kOneRounding) << rows << " x " << cols;
  }
}

TEST_F(ElementwiseCuda, RmsNormBackwardIsTheCpusAndRepeatable) {
  for (const auto& [rows, cols] : {std::pair{3, 64},
                                   {7, 16},
                                   {9, 48},
                                   {2501, 128},
                                   {5, 256},
                                   {5, 320},
                                   {1200, 576},
                                   {3, 2048},
                                   {30, 3008},
                                   {2, 8192},
                                   {2, 16384}}) {
    const NormShape shape{rows, cols, 1e-6f};
    const auto x = random_bf16(rows * cols, 1, 3.0f), weight = random_bf16(cols, 2);
    const auto dy = random_bf16(rows * cols, 3);
    const auto start = random_floats(cols, 4);
    std::vector<std::vector<float>> dweights;
    for (int run = 0; run < 2; ++run) {
      const auto dx = poisoned<uint16_t>(rows * cols);
      const auto dweight = on_device(start);
      const auto scratch = poisoned<float>(cuda::norm_scratch_floats(shape));
      cuda::rms_norm_backward(on_device(x).data(), on_device(weight).data(), on_device(dy).data(),
                              shape, dx.data(), dweight.data(), scratch.data(), nullptr);
      std::vector<float> want_dx(x.size()), want_dweight = start;
      rms_norm_backward(widened(x).data(), weight.data(), widened(dy).data(), shape, want_dx.data(),
                        want_dweight.data(), serial);
      EXPECT_LT(relative_error(widened(on_host(dx)), want_dx), kOneRounding);
      EXPECT_LT(relative_error(on_host(dweight), want_dweight), 1e-5);
      dweights.push_back(on_host(dweight));
    }
    EXPECT_EQ(dweights[0], dweights[1]);
  }
}

TEST_F(ElementwiseCuda, SiluMulAndItsBackwardAreTheCpus) {
  const int64_t count = 8 * 1237;
  const auto gate = random_bf16(count, 1, 4.0f), up = random_bf16(count, 2);
  const auto dout = random_bf16(count, 3);
  const auto g = on_device(gate), u = on_device(up), d = on_device(dout);
  const auto out = poisoned<uint16_t>(count), dg = poisoned<uint16_t>(count),
             du = poisoned<uint16_t>(count);
  cuda::silu_mul(g.data(), u.data(), count, out.data(), nullptr);
  cuda::silu_mul_backward(g.data(), u.data(), d.data(), count, dg.data(), du.data(), nullptr);
  std::vector<float> want(gate.size()), want_dg(gate.size()), want_du(gate.size());
  const auto gf = widened(gate), uf = widened(up), df = widened(dout);
  silu_mul(gf.data(), uf.data(), count, want.data(), serial);
  silu_mul_backward(gf.data(), uf.data(), df.data(), count, want_dg.data(), want_du.data(), serial);
  EXPECT_LT(relative_error(widened(on_host(out)), want), kOneRounding);
  EXPECT_LT(relative_error(widened(on_host(dg)), want_dg), kOneRounding);
  EXPECT_LT(relative_error(widened(on_host(du)), want_du), kOneRounding);
}

class RopeCuda : public GpuTest, public ::testing::WithParamInterface<int64_t> {};

TEST_P(RopeCuda, IsTheCpusAndBackwardTurnsBack) {
  const int64_t tokens = 37, heads = 3, half = GetParam(), positions = 50;
  std::vector<float> cosine, sine;
  for (int64_t i = 0; i < positions * half; ++i) {
    const double angle = static_cast<double>(i / half) / (1.0 + static_cast<double>(i % half));
    cosine.push_back(static_cast<float>(std::cos(angle)));
    sine.push_back(static_cast<float>(std::sin(angle)));
  }
  std::vector<int32_t> position;
  for (int64_t t = 0; t < tokens; ++t) position.push_back(static_cast<int32_t>(t * 7 % positions));
  const auto x = random_bf16(tokens * heads * 2 * half, 1);
  const auto dc = on_device(cosine), ds = on_device(sine);
  const auto dp = on_device(position);
  const auto d_x = on_device(x);
  const auto y = poisoned<uint16_t>(std::ssize(x));
  const RopeTable on_gpu{dc.data(), ds.data(), half, positions};
  cuda::rope(d_x.data(), y.data(), dp.data(), tokens, heads, on_gpu, RopeDirection::kForward,
             nullptr);
  std::vector<float> want = widened(x);
  rope(want.data(), position.data(), tokens, heads, {cosine.data(), sine.data(), half, positions},
       RopeDirection::kForward, serial);
  EXPECT_LT(relative_error(widened(on_host(y)), want), kOneRounding);
  cuda::rope(y.data(), y.data(), dp.data(), tokens, heads, on_gpu, RopeDirection::kBackward,
             nullptr);
  EXPECT_LT(relative_error(widened(on_host(y)), widened(x)), 2 * kOneRounding);
}

INSTANTIATE_TEST_SUITE_P(Halves, RopeCuda, ::testing::Values(4, 8, 20, 32, 64));

TEST_F(ElementwiseCuda, EmbedAddAndScatterMoveTheRightRows) {
  const int64_t tokens = 5, cols = 16, vocab = 9;
  const auto table = random_bf16(vocab * cols, 1);
  const std::vector<int32_t> ids = {3, 8, 0, 3, 7}, slots = {4, -1, 0, 2, 6};
  const auto d_ids = on_device(ids), d_slots = on_device(slots);
  const auto rows = poisoned<uint16_t>(tokens * cols);
  const auto d_table = on_device(table);
  const WeightView view{WeightFormat::kBf16, d_table.data(), nullptr, vocab, cols, 0};
  const auto entry = on_device(std::vector<WeightView>{view});
  cuda::embed(d_ids.data(), {view, entry.data()}, tokens, rows.data(), nullptr);
  const auto cache = on_device(std::vector<uint16_t>(8 * cols, 0));
  cuda::scatter_rows(rows.data(), d_slots.data(), tokens, cols, cache.data(), nullptr);
  cuda::add(rows.data(), rows.data(), tokens * cols, nullptr);
  const auto doubled = widened(on_host(rows));
  const auto cached = on_host(cache);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
      const uint16_t value = table[static_cast<size_t>(ids[t]) * cols + c];
      EXPECT_EQ(doubled[t * cols + c], 2.0f * quant::bf16_to_float(value));
      if (slots[t] >= 0) {
        EXPECT_EQ(cached[static_cast<size_t>(slots[t]) * cols + c], value);
      }
    }
  }
  for (size_t c = 0; c < static_cast<size_t>(cols); ++c) EXPECT_EQ(cached[cols + c], 0);
}

}  // namespace
}  // namespace nibble::kernels
