// Adapters beside frozen weights, against plain torch sums over Transformers (oracles/lora), and
// the engine's executor against the trainer's.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/models/arena_executor.h"
#include "tests/core/models/lora_model.h"

namespace nibble {
namespace {

struct LoraOracle {
  explicit LoraOracle(const Json& info)
      : name(info["name"]),
        model(name, info["base"].get<std::string>(),
              {info["rank"].get<int64_t>(), info["alpha"].get<double>(), LoraTargets::kLinear}),
        io(test_root() / "tests/oracles/lora" / (name + ".safetensors")) {}
  std::vector<float> floats(const std::string& tensor) const {
    const TensorView view = io.tensor(tensor);
    std::vector<float> out(view.bytes.size() / 4);
    std::memcpy(out.data(), view.bytes.data(), out.size() * 4);
    return out;
  }
  TapeResult run(const std::vector<int32_t>& ids,
                 ActivationType activations = ActivationType::kFloat32) const {
    const PackedBatch batch = pack_sequence(ids);
    return run_log_probs(model.spec, *model.weights, model.base.rope, {batch}, 1.0f, activations);
  }

  std::string name;
  LoraModel model;
  SafetensorsFile io;
};

Json cases() { return read_json_file(test_root() / "tests/oracles/lora/cases.json"); }

TEST(LoraOracle, LogProbsMatchTransformersAndDifferFromTheBases) {
  for (const Json& info : cases()) {
    LoraOracle oracle(info);
    EXPECT_EQ(oracle.model.num_adapters, info["num_adapters"].get<int>());
    const at::NoGradGuard no_grad;
    for (int s = 0; s < oracle.model.base.num_sequences(); ++s) {
      const auto ids = oracle.model.base.ids(s);
      if (ids.size() < 2) continue;
      const TapeResult got = oracle.run(ids);
      const auto want = oracle.floats("seq" + std::to_string(s) + ".logprobs_fp32");
      const auto without = oracle.model.base.log_probs(s);
      ASSERT_EQ(got.log_prob.numel(), std::ssize(want));
      double moved = 0.0;
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_NEAR(got.log_prob.const_data_ptr<float>()[i], want[i], 5e-5f) << oracle.name;
        moved = std::max(moved, std::fabs(static_cast<double>(want[i] - without[i])));
      }
      EXPECT_GT(moved, 0.1) << "the adapters count";
    }
  }
}

TEST(LoraOracle, GradientsOfBothMatricesMatchTransformers) {
  for (const Json& info : cases()) {
    LoraOracle oracle(info);
    oracle.model.weights->enable_gradients();
    double loss = 0.0;
    for (int s = 0; s < oracle.model.base.num_sequences(); ++s) {
      const auto ids = oracle.model.base.ids(s);
      if (ids.size() < 2) continue;
      const at::Tensor negative = oracle.run(ids).log_prob.sum().neg();
      loss += negative.item<double>();
      negative.backward();
    }
    EXPECT_NEAR(loss / info["loss"].get<double>(), 1.0, 1e-6);
    double squares = 0.0;
    int checked = 0;
    for (int64_t p = 0; p < oracle.model.spec.table.size(); ++p) {
      const ParameterSpec& spec = oracle.model.spec.table.at(p);
      if (spec.is_frozen) continue;
      const float* got = oracle.model.weights->grad(p);
      for (int64_t i = 0; i < spec.num_elements(); ++i) {
        squares += static_cast<double>(got[i]) * static_cast<double>(got[i]);
      }
      if (!oracle.io.contains("grad." + spec.name())) continue;
      const auto want = oracle.floats("grad." + spec.name());
      double apart = 0.0, norm = 0.0;
      for (size_t i = 0; i < want.size(); ++i) {
        apart += std::pow(static_cast<double>(got[i] - want[i]), 2);
        norm += std::pow(static_cast<double>(want[i]), 2);
      }
      EXPECT_GT(norm, 0.0);
      EXPECT_LE(std::sqrt(apart), 1e-4 * std::sqrt(norm)) << spec.name();
      ++checked;
    }
    EXPECT_GE(checked, 2);
    EXPECT_NEAR(std::sqrt(squares) / info["global_grad_norm"].get<double>(), 1.0, 1e-5);
  }
}

// Final hidden states of a sequence, in two chunks.
std::vector<float> engine_hidden(const LoraModel& model, const std::vector<int32_t>& ids,
                                 ActivationType activations) {
  const kernels::Serial serial;
  const auto count = static_cast<int64_t>(ids.size());
  const int64_t chunk = count / 2;
  ArenaExecutor run(model.spec, {count - chunk, count}, serial, activations);
  KvCache cache(model.spec.config, count);
  std::vector<int32_t> rows(ids.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> hidden;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, chunk}, std::pair{chunk, count}}) {
    std::vector<int32_t> key_rows;
    std::vector<int64_t> starts;
    std::vector<int32_t> counts;
    for (int64_t t = begin; t < end; ++t) {
      starts.push_back(static_cast<int64_t>(key_rows.size()));
      counts.push_back(static_cast<int32_t>(t + 1));
      key_rows.insert(key_rows.end(), rows.begin(), rows.begin() + t + 1);
    }
    const auto place = static_cast<size_t>(begin), tokens = static_cast<size_t>(end - begin);
    ArenaStep step;
    step.tokens = std::span(ids).subspan(place, tokens);
    step.position = step.slot = std::span<const int32_t>(rows).subspan(place, tokens);
    step.keys = {key_rows.data(), starts.data(), counts.data()};
    const float* out = run.run(step, *model.weights, cache);
    hidden.insert(hidden.end(), out, out + (end - begin) * model.spec.config.hidden);
  }
  return hidden;
}

TEST(Lora, TheEnginesExecutorGivesTheTrainersBits) {
  for (const char* name : {"dense_untied", "moe_mixed"}) {
    for (const LoraTargets targets :
         {LoraTargets::kAttention, LoraTargets::kMlp, LoraTargets::kLinear}) {
      for (const double alpha : {32.0, 48.0}) {  // the first scales by 1
        const LoraModel model(name, "int4_sym7", {32, alpha, targets});
        ASSERT_GT(model.num_adapters, 0);
        for (const auto activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
          auto ids = model.base.ids(model.base.num_sequences() - 1);
          ids.resize(21);
          const at::NoGradGuard no_grad;
          const PackedBatch batch = pack_sequence(ids);
          const auto run = std::make_shared<TapeExecutor>(
              model.spec, *model.weights, model.base.rope, TapeInputs{batch}, activations);
          const at::Tensor want = TapeExecutor::hidden_states(run);
          // The last token predicts nothing, and the trainer leaves it out.
          const auto got = engine_hidden(model, ids, activations);
          ASSERT_LE(want.numel(), std::ssize(got));
          EXPECT_EQ(std::memcmp(got.data(), want.const_data_ptr<float>(),
                                static_cast<size_t>(want.numel()) * sizeof(float)),
                    0)
              << name << " alpha " << alpha;
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
