// A draft head (embedding and hidden state joined, one layer, norm, output matrix) against a plain
// double-precision computation, forward and backward; and the engine's executor against the
// trainer's, to the bit.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/models/arena_executor.h"
#include "core/models/kv_cache.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/models/weights.h"
#include "core/quant/bf16.h"

namespace nibble {
namespace {

const kernels::Serial kSerial;
constexpr int64_t kHidden = 32;
constexpr int64_t kHeadDim = 16;

using Matrix = std::vector<double>;  // row-major, or a vector

ModelConfig head_config(bool qk_norm, bool tied) {
  ModelConfig c;
  c.vocab = 19;
  c.hidden = kHidden;
  c.intermediate = 48;
  c.num_layers = 1;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = kHeadDim;
  c.max_position = 64;
  c.qk_norm = qk_norm;
  c.tied_embeddings = tied;
  c.layer_is_moe = {false};
  c.joins_hidden = true;
  return c;
}

struct Head {
  Head(bool qk_norm, bool tied)
      : spec(make_model_spec(head_config(qk_norm, tied))),
        weights(spec.table, plan_bf16(spec.table)) {
    std::mt19937 generator(3);
    std::normal_distribution<float> normal;
    for (int64_t p = 0; p < spec.table.size(); ++p) {
      const bool is_vector = spec.table.at(p).is_vector();
      for (uint16_t& bits : weights.stored(p).bf16) {
        bits = quant::float_to_bf16((is_vector ? 1.0f : 0.0f) +
                                    (is_vector ? 0.2f : 0.25f) * normal(generator));
      }
    }
    tokens = {3, 18, 0, 7, 7, 11, 5};
    target = {1, 0, 7, 2, 11, 5, 9};
    for (size_t i = 0; i < tokens.size() * kHidden; ++i) joined.push_back(normal(generator));
  }
  std::vector<Matrix> parameters() const {
    std::vector<Matrix> out;
    for (const StoredParameter& stored : weights.parameters()) {
      Matrix values;
      for (const uint16_t bits : stored.bf16) values.push_back(quant::bf16_to_float(bits));
      out.push_back(std::move(values));
    }
    return out;
  }
  PackedBatch batch() const {
    std::vector<int32_t> ids = tokens;
    ids.push_back(target.back());  // computed by nobody: see pack_sequence
    PackedBatch packed = pack_sequence(ids);
    packed.target = target;
    return packed;
  }

  ModelSpec spec;
  ResidentWeights weights;
  std::vector<int32_t> tokens, target;
  std::vector<float> joined;  // [tokens, hidden]
};

Matrix normed(const Matrix& x, const Matrix& weight, double eps) {
  Matrix y = x;
  const size_t width = weight.size();
  for (size_t row = 0; row < x.size() / width; ++row) {
    double squares = 0.0;
    for (size_t i = 0; i < width; ++i) squares += std::pow(x[row * width + i], 2);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
    for (size_t i = 0; i < width; ++i) y[row * width + i] *= scale * weight[i];
  }
  return y;
}

Matrix times(const Matrix& x, const Matrix& weight, size_t cols) {
  Matrix y;
  for (size_t row = 0; row < x.size() / cols; ++row) {
    for (size_t out = 0; out < weight.size() / cols; ++out) {
      double sum = 0.0;
      for (size_t i = 0; i < cols; ++i) sum += x[row * cols + i] * weight[out * cols + i];
      y.push_back(sum);
    }
  }
  return y;
}

void rotate(Matrix& x, size_t heads, double theta) {
  const size_t half = kHeadDim / 2;
  for (size_t t = 0; t < x.size() / (heads * kHeadDim); ++t) {
    for (size_t h = 0; h < heads; ++h) {
      double* head = x.data() + (t * heads + h) * kHeadDim;
      for (size_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(t) * std::pow(theta, -2.0 * static_cast<double>(i) / kHeadDim);
        const double a = head[i], b = head[i + half];
        head[i] = a * std::cos(angle) - b * std::sin(angle);
        head[i + half] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
}

Matrix attend(const Matrix& q, const Matrix& k, const Matrix& v, size_t heads, size_t kv_heads) {
  const size_t tokens = q.size() / (heads * kHeadDim);
  Matrix out(q.size(), 0.0);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t h = 0; h < heads; ++h) {
      const size_t kv = h / (heads / kv_heads);
      std::vector<double> weight;
      double sum = 0.0;
      for (size_t s = 0; s <= t; ++s) {
        double dot = 0.0;
        for (size_t i = 0; i < kHeadDim; ++i) {
          dot += q[(t * heads + h) * kHeadDim + i] * k[(s * kv_heads + kv) * kHeadDim + i];
        }
        weight.push_back(std::exp(dot / std::sqrt(double{kHeadDim})));
        sum += weight.back();
      }
      for (size_t s = 0; s <= t; ++s) {
        for (size_t i = 0; i < kHeadDim; ++i) {
          out[(t * heads + h) * kHeadDim + i] +=
              weight[s] / sum * v[(s * kv_heads + kv) * kHeadDim + i];
        }
      }
    }
  }
  return out;
}

// Log-probabilities of the targets.
std::vector<double> plain_log_probs(const Head& head, const std::vector<Matrix>& w) {
  const ParameterTable& table = head.spec.table;
  const ModelConfig& c = head.spec.config;
  const auto at = [&w](int64_t p) -> const Matrix& { return w[static_cast<size_t>(p)]; };
  Matrix embedded;
  for (const int32_t id : head.tokens) {
    const auto row = at(table.embedding).begin() + id * kHidden;
    embedded.insert(embedded.end(), row, row + kHidden);
  }
  const Matrix e = normed(embedded, at(table.join.embedding_norm), c.rms_eps);
  const Matrix h =
      normed(Matrix(head.joined.begin(), head.joined.end()), at(table.join.hidden_norm), c.rms_eps);
  Matrix both;
  for (size_t t = 0; t < head.tokens.size(); ++t) {
    both.insert(both.end(), e.begin() + static_cast<ptrdiff_t>(t * kHidden),
                e.begin() + static_cast<ptrdiff_t>((t + 1) * kHidden));
    both.insert(both.end(), h.begin() + static_cast<ptrdiff_t>(t * kHidden),
                h.begin() + static_cast<ptrdiff_t>((t + 1) * kHidden));
  }
  Matrix residual = times(both, at(table.join.projection), 2 * kHidden);
  const LayerParameters& p = table.layers[0];
  const Matrix x = normed(residual, at(p.input_norm), c.rms_eps);
  Matrix q = times(x, at(p.q), kHidden), k = times(x, at(p.k), kHidden);
  const Matrix v = times(x, at(p.v), kHidden);
  if (c.qk_norm) {
    q = normed(q, at(p.q_norm), c.rms_eps);
    k = normed(k, at(p.k_norm), c.rms_eps);
  }
  const auto heads = static_cast<size_t>(c.num_heads);
  const auto kv_heads = static_cast<size_t>(c.num_kv_heads);
  rotate(q, heads, c.rope.theta);
  rotate(k, kv_heads, c.rope.theta);
  const Matrix o = times(attend(q, k, v, heads, kv_heads), at(p.o), heads * kHeadDim);
  for (size_t i = 0; i < residual.size(); ++i) residual[i] += o[i];
  const Matrix y = normed(residual, at(p.post_norm), c.rms_eps);
  Matrix gate = times(y, at(p.gate), kHidden);
  const Matrix up = times(y, at(p.up), kHidden);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1.0 + std::exp(-gate[i]));
  const Matrix down = times(gate, at(p.down), static_cast<size_t>(c.intermediate));
  for (size_t i = 0; i < residual.size(); ++i) residual[i] += down[i];
  const Matrix logits =
      times(normed(residual, at(table.final_norm), c.rms_eps), at(table.lm_head), kHidden);
  std::vector<double> out;
  const auto vocab = static_cast<size_t>(c.vocab);
  for (size_t t = 0; t < head.tokens.size(); ++t) {
    double sum = 0.0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(logits[t * vocab + i]);
    out.push_back(logits[t * vocab + static_cast<size_t>(head.target[t])] - std::log(sum));
  }
  return out;
}

at::Tensor tensor_of(const std::vector<float>& values) {
  return at::from_blob(const_cast<float*>(values.data()), {std::ssize(values) / kHidden, kHidden})
      .clone();
}

class DraftHead : public ::testing::TestWithParam<std::tuple<bool, bool>> {
 protected:
  Head head_{std::get<0>(GetParam()), std::get<1>(GetParam())};
  at::Tensor tape_log_probs() {
    const PackedBatch batch = head_.batch();
    TapeInputs inputs{batch};
    inputs.joined = tensor_of(head_.joined);
    const auto rope = make_rope_table(head_.spec.config.rope, kHeadDim, 64);
    return run_log_probs(head_.spec, head_.weights, rope, inputs, 1.0f, ActivationType::kFloat32)
        .log_prob;
  }
};

TEST_P(DraftHead, LogProbsAreThoseOfAPlainComputation) {
  const std::vector<double> want = plain_log_probs(head_, head_.parameters());
  const at::Tensor got = tape_log_probs();
  ASSERT_EQ(got.numel(), std::ssize(want));
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got.data_ptr<float>()[i], want[i], 2e-5) << i;
  }
}

// Of the sum of log-probabilities, by every parameter: the largest and some others of each.
TEST_P(DraftHead, GradientsAreThoseOfFiniteDifferences) {
  head_.weights.enable_gradients();
  tape_log_probs().sum().backward();
  std::vector<Matrix> w = head_.parameters();
  const auto sum = [&] {
    double total = 0.0;
    for (const double log_prob : plain_log_probs(head_, w)) total += log_prob;
    return total;
  };
  constexpr double kStep = 1e-5;
  for (int64_t p = 0; p < head_.spec.table.size(); ++p) {
    Matrix& values = w[static_cast<size_t>(p)];
    const float* grad = head_.weights.grad(p);
    const auto largest =
        std::max_element(grad, grad + values.size(),
                         [](float a, float b) { return std::abs(a) < std::abs(b); }) -
        grad;
    EXPECT_GT(std::abs(grad[largest]), 1e-3) << head_.spec.table.at(p).name();
    for (const size_t i :
         {static_cast<size_t>(largest), size_t{0}, values.size() / 3, values.size() - 1}) {
      const double before = std::exchange(values[i], values[i] + kStep);
      const double above = sum();
      values[i] = before - kStep;
      const double slope = (above - sum()) / (2 * kStep);
      values[i] = before;
      EXPECT_NEAR(grad[i], slope, 2e-4 + 1e-3 * std::abs(slope))
          << head_.spec.table.at(p).name() << " " << i;
    }
  }
}

// Token by token, with the others' keys in the cache.
TEST_P(DraftHead, TheEnginesExecutorGivesTheTrainersBits) {
  const at::NoGradGuard no_grad;
  for (const auto activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
    const PackedBatch batch = head_.batch();
    TapeInputs inputs{batch};
    inputs.joined = tensor_of(head_.joined);
    const auto rope = make_rope_table(head_.spec.config.rope, kHeadDim, 64);
    TapeExecutor tape(head_.spec, head_.weights, rope, inputs, activations);
    const at::Tensor want = run_decoder(tape, head_.spec);
    KvCache cache(head_.spec.config, 64);
    ArenaExecutor arena(head_.spec, {4, 64}, kSerial, activations);
    std::vector<int32_t> slots(64);
    for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int32_t>(63 - i);
    for (size_t t = 0; t < head_.tokens.size(); ++t) {
      const auto position = static_cast<int32_t>(t);
      const int64_t first = 0;
      const int32_t count = position + 1;
      const float* got = arena.run({std::span(&head_.tokens[t], 1),
                                    std::span(&position, 1),
                                    std::span(&slots[t], 1),
                                    {slots.data(), &first, &count},
                                    std::span(head_.joined).subspan(t * kHidden, kHidden)},
                                   head_.weights, cache);
      for (int64_t i = 0; i < kHidden; ++i) {
        ASSERT_EQ(got[i], want.data_ptr<float>()[static_cast<int64_t>(t) * kHidden + i]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DraftHead,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool()));

}  // namespace
}  // namespace nibble
