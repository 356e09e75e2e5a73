// What `exact` costs against `fast`, operation by operation: products with INT4 matrices (the panel
// is made each time, as in training), the two kernels of `exact` for a decode step's few tokens,
// and attention of packed sequences. Checks first that a token's results are the bits it gets
// alone, and that the kernels agree. One JSON line an operation.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/base/array.h"
#include "core/base/fail.h"
#include "core/cuda/check.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/kernels_cuda/dequantize.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/panel_linear.h"
#include "core/models/packing.h"

namespace nibble {
namespace {

constexpr int64_t kTokens = 4096, kSequence = 1024, kGroup = 128;

at::TensorOptions bf16() {
  return at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA, at::cuda::current_device());
}

// Median of several calls, in ms.
template <typename Body>
double time_ms(const Body& body) {
  std::vector<double> times;
  for (int round = 0; round < 9; ++round) {
    NIBBLE_CUDA_CHECK(cudaDeviceSynchronize());
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 3; ++i) body();
    NIBBLE_CUDA_CHECK(cudaDeviceSynchronize());
    times.push_back(
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
            .count() /
        3);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void check(bool same, const std::string& what) {
  if (!same) fail(ErrorCode::kInternal, "{}: a token alone gets other bits", what);
}

struct Backends {
  std::unique_ptr<ops::Backend> exact = ops::make_cuda_backend(Numerics::kExact);
  std::unique_ptr<ops::Backend> fast = ops::make_cuda_backend(Numerics::kFast);
};

// A matrix of random codes.
struct Matrix {
  Matrix(int64_t rows, int64_t cols)
      : words(static_cast<size_t>(rows * cols / 8), DeviceKind::kCuda),
        scale(static_cast<size_t>(rows * cols / kGroup), DeviceKind::kCuda),
        view{kernels::WeightFormat::kInt4, words.data(), scale.data(), rows, cols, kGroup} {
    at::from_blob(words.data(), {rows * cols / 8}, bf16().dtype(at::kInt)).random_();
    at::from_blob(scale.data(), {rows * cols / kGroup}, bf16()).fill_(0.01);
  }
  Array<uint32_t> words;
  Array<uint16_t> scale;
  kernels::WeightView view;
};

uint16_t* bits(const at::Tensor& tensor) { return static_cast<uint16_t*>(tensor.data_ptr()); }

// Where a panel begins to pay: the kernel that dequantizes as it multiplies against a panel and the
// kernel of many tokens.
void measure_few_tokens(int64_t rows, int64_t cols, int64_t tokens) {
  const Matrix m(rows, cols);
  const at::Tensor x = at::randn({tokens, cols}, bf16());
  const at::Tensor panel = at::empty({rows, cols}, bf16());
  const at::Tensor direct_y = at::empty({tokens, rows}, bf16());
  const at::Tensor panel_y = at::empty({tokens, rows}, bf16());
  cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const kernels::cuda::DeviceWeight weight{m.view, nullptr};
  const auto direct = [&] {
    kernels::cuda::linear(bits(x), weight, tokens, bits(direct_y), stream);
  };
  const auto by_panel = [&] {
    kernels::cuda::dequantize(weight, bits(panel), stream);
    kernels::cuda::panel_linear(bits(x), bits(panel), rows, cols, tokens, bits(panel_y), stream);
  };
  direct();
  by_panel();
  check(at::equal(direct_y, panel_y), "few tokens");
  const double direct_ms = time_ms(direct), panel_ms = time_ms(by_panel);
  fmt::print(
      "{{\"bench\": \"few_tokens\", \"rows\": {}, \"cols\": {}, \"tokens\": {}, \"direct_ms\": "
      "{:.3f}, "
      "\"panel_ms\": {:.3f}, \"ratio\": {:.3f}}}\n",
      rows, cols, tokens, direct_ms, panel_ms, panel_ms / direct_ms);
}

void measure_product(const Backends& backends, int64_t rows, int64_t cols, int64_t tokens) {
  const Matrix m(rows, cols);
  const kernels::WeightView& w = m.view;
  const auto gpu = bf16();
  const at::Tensor x = at::randn({tokens, cols}, gpu);
  const at::Tensor y = backends.exact->linear(x, w);
  for (const int64_t t : {int64_t{0}, tokens / 2, tokens - 1}) {
    check(at::equal(backends.exact->linear(x.narrow(0, t, 1), w), y.narrow(0, t, 1)), "product");
  }
  const double exact = time_ms([&] { (void)backends.exact->linear(x, w); });
  const double fast = time_ms([&] { (void)backends.fast->linear(x, w); });
  const double flop = 2.0 * static_cast<double>(rows * cols * tokens);
  fmt::print(
      "{{\"bench\": \"product\", \"rows\": {}, \"cols\": {}, \"tokens\": {}, \"exact_ms\": {:.3f}, "
      "\"exact_TFLOP_per_s\": {:.0f}, \"fast_ms\": {:.3f}, \"fast_TFLOP_per_s\": {:.0f}, "
      "\"ratio\": {:.3f}}}\n",
      rows, cols, tokens, exact, 1e-9 * flop / exact, fast, 1e-9 * flop / fast, exact / fast);
}

void measure_attention(const Backends& backends, int64_t heads, int64_t kv_heads, int64_t dim,
                       int64_t sequence) {
  std::vector<SequenceGroup> groups(static_cast<size_t>(kTokens / sequence));
  for (SequenceGroup& group : groups) {
    group.prompt.assign(static_cast<size_t>(sequence / 4), 1);
    group.responses.emplace_back(static_cast<size_t>(sequence - sequence / 4), 1);
  }
  const PackedBatch batch = pack_groups(groups);
  const int64_t tokens = batch.index->tokens();
  const at::Tensor q = at::randn({tokens, heads * dim}, bf16());
  const at::Tensor k = at::randn({tokens, kv_heads * dim}, bf16());
  const at::Tensor v = at::randn({tokens, kv_heads * dim}, bf16());
  const kernels::AttentionShape shape{tokens, heads, kv_heads, dim,
                                      1.0f / std::sqrt(static_cast<float>(dim))};
  const auto run = [&](const ops::Backend& backend, const ops::PlacedIndex& index) {
    return backend.attention(q, k, v, index, shape);
  };
  const auto exact_index = backends.exact->place(batch.index);
  const auto fast_index = backends.fast->place(batch.index);
  const at::Tensor out = run(*backends.exact, *exact_index).out;
  const at::Tensor apart = out.sub(run(*backends.fast, *fast_index).out).abs().mean().cpu();
  const double error = static_cast<double>(apart.to(at::kFloat).const_data_ptr<float>()[0]);
  if (error > 1e-3) fail(ErrorCode::kInternal, "attention differs by {} on average", error);
  const double exact = time_ms([&] { (void)run(*backends.exact, *exact_index); });
  const double fast = time_ms([&] { (void)run(*backends.fast, *fast_index); });
  fmt::print(
      "{{\"bench\": \"attention\", \"heads\": {}, \"kv_heads\": {}, \"head_dim\": {}, \"tokens\": "
      "{}, \"sequence\": {}, \"exact_ms\": {:.3f}, \"fast_ms\": {:.3f}, \"ratio\": {:.2f}, "
      "\"mean_difference\": {:.2e}}}\n",
      heads, kv_heads, dim, tokens, sequence, exact, fast, exact / fast, error);
}

void measure() {
  const Backends backends;
  // Of Qwen3-4B and 0.6B.
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{4096, 2560},
                                   {1024, 2560},
                                   {2560, 4096},
                                   {9728, 2560},
                                   {2560, 9728},
                                   {3072, 1024},
                                   {1024, 3072}}) {
    measure_product(backends, rows, cols, kTokens);
  }
  measure_product(backends, 9728, 2560, 512);
  for (const int64_t tokens : {24, 40, 64, 128, 256}) {
    for (const auto& [rows, cols] :
         {std::pair<int64_t, int64_t>{4096, 2560}, {1024, 2560}, {9728, 2560}, {2560, 9728}}) {
      measure_few_tokens(rows, cols, tokens);
    }
  }
  for (const int64_t sequence : {int64_t{256}, kSequence, kTokens}) {
    measure_attention(backends, 32, 8, 128, sequence);
  }
  measure_attention(backends, 16, 8, 128, kSequence);
  measure_attention(backends, 9, 3, 64, kSequence);
}

}  // namespace
}  // namespace nibble

int main() {
  try {
    nibble::ops::use_cuda_device(0);
    nibble::measure();
  } catch (const nibble::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
