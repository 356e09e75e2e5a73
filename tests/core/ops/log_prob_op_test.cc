// Log-probabilities and entropies under autograd against torch's own.
#include <gtest/gtest.h>

#include <ATen/Functions.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/ops/cpu_backend.h"
#include "core/ops/tape_ops.h"

namespace nibble::ops {
namespace {

// One BF16 matrix and its gradient.
class OneMatrix final : public WeightSource {
 public:
  explicit OneMatrix(const at::Tensor& weight)
      : weight_(weight.to(at::kBFloat16).contiguous()), grad_(at::zeros(weight.sizes())) {}
  void enter_layer(int64_t, Pass) override {}
  void leave_layer(int64_t, Pass) override {}
  kernels::WeightView weight(int64_t) const override {
    return {kernels::WeightFormat::kBf16,
            weight_.const_data_ptr(),
            nullptr,
            weight_.size(0),
            weight_.size(1),
            0};
  }
  float* grad(int64_t) override { return grad_.data_ptr<float>(); }
  const at::Tensor& values() const { return weight_; }
  const at::Tensor& gradient() const { return grad_; }

 private:
  at::Tensor weight_, grad_;
};

void expect_near(const at::Tensor& got, const at::Tensor& want, const char* what) {
  const double error = got.sub(want).abs().max().item<double>();
  EXPECT_LE(error, 1e-5 * want.abs().max().item<double>()) << what;
}

TEST(TokenLogProbs, GradientsOfBothOutputsAreTorchs) {
  at::manual_seed(5);
  constexpr float kTemperature = 0.7f;
  // Two targets after each row.
  const at::Tensor hidden = at::randn({20, 32});
  const at::Tensor row = at::arange(40, at::kLong).remainder(20);
  const at::Tensor target = at::arange(40, at::kInt).mul(7).remainder(101);
  const at::Tensor dlogprob = at::randn({40}), dentropy = at::randn({40});
  for (const auto& [with_log_prob, with_entropy] :
       {std::pair{true, false}, {false, true}, {true, true}}) {
    OneMatrix source(at::randn({101, 32}));
    const at::Tensor x = hidden.clone().requires_grad_(true);
    const TokenLogProbs out =
        token_log_probs(cpu_backend(), x, {&source, 0}, {row, target.to(at::kInt), kTemperature});
    const at::Tensor y = hidden.clone().requires_grad_(true);
    const at::Tensor w = source.values().to(at::kFloat).requires_grad_(true);
    const at::Tensor all = at::log_softmax(at::mm(y, w.t()).div(kTemperature), 1);
    const at::Tensor picked = all.index_select(0, row);
    const at::Tensor log_prob = picked.gather(1, target.to(at::kLong).unsqueeze(1)).squeeze(1);
    const at::Tensor entropy = picked.exp().mul(picked).sum(1).neg();
    expect_near(out.log_prob.detach(), log_prob.detach(), "log-probabilities");
    expect_near(out.entropy.detach(), entropy.detach(), "entropies");
    std::vector<at::Tensor> outputs, wanted, grads;
    const auto use = [&](const at::Tensor& mine, const at::Tensor& torchs, const at::Tensor& grad) {
      outputs.push_back(mine);
      wanted.push_back(torchs);
      grads.push_back(grad);
    };
    if (with_log_prob) use(out.log_prob, log_prob, dlogprob);
    if (with_entropy) use(out.entropy, entropy, dentropy);
    torch::autograd::backward(outputs, grads);
    torch::autograd::backward(wanted, grads);
    expect_near(x.grad(), y.grad(), "gradient of the hidden states");
    expect_near(source.gradient(), w.grad(), "gradient of the matrix");
  }
}

}  // namespace
}  // namespace nibble::ops
