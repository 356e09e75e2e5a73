// Adapters in the GPU's engine: in `exact` its log-probabilities are the trainer's to the bit, with
// CUDA graphs and without.
#include <cstring>

#include "rollout/engine_cuda/cuda_step_runner.h"
#include "tests/core/models/lora_model.h"
#include "tests/core/models_cuda/gpu_backend.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

std::vector<GenerateRequest> workload(const OracleModel& model) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  std::vector<GenerateRequest> requests;
  for (uint32_t s = 0; s < 6; ++s) {
    GenerateRequest request;
    request.id = s;
    request.prompt_id = s / 3;
    request.sample_index = s % 3;
    request.prompt = {text.begin(), text.begin() + (s < 3 ? 23 : 2)};  // in a panel, and not
    request.max_new_tokens = 6;
    request.seed = 99;
    requests.push_back(std::move(request));
  }
  return requests;
}

class LoraCuda : public ::testing::TestWithParam<std::tuple<std::string, std::string, double>> {
 protected:
  void SetUp() override {
    if (!use_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_P(LoraCuda, ExactSamplesAreTheTrainersToTheBitWithGraphsAndWithout) {
  const auto& [name, variant, alpha] = GetParam();
  const LoraModel model(name, variant, {32, alpha, LoraTargets::kLinear});
  const auto backend = ops::make_cuda_backend(Numerics::kExact);
  const auto weights = model.weights->to(DeviceKind::kCuda);
  const auto rope = backend->place(model.base.rope);
  const std::vector<GenerateRequest> requests = workload(model.base);
  for (const std::vector<int64_t>& graphs : {std::vector<int64_t>{}, {1, 2, 4, 8}}) {
    EngineConfig config;
    config.max_step_tokens = 64;
    config.max_running = 8;
    config.kv_slots = 256;
    config.max_positions = 64;
    config.max_logit_rows = 8;
    Engine engine(model.spec, config, cuda_step_runner(*backend, {Numerics::kExact, graphs}));
    engine.set_weights(borrowed(*weights), 1);
    submit_all(engine, workload(model.base));
    const std::vector<Completion> done = finish_all(engine);
    ASSERT_EQ(done.size(), requests.size());
    std::vector<SequenceGroup> groups;
    std::vector<float> sampled;
    for (size_t i = 0; i < requests.size(); ++i) {
      if (i % 3 == 0) groups.push_back({requests[i].prompt, {}});
      groups.back().responses.push_back(done[i].tokens);
      sampled.insert(sampled.end(), done[i].log_probs.begin(), done[i].log_probs.end());
    }
    const PackedBatch batch = pack_groups(groups);
    const at::NoGradGuard no_grad;
    const at::Tensor trained = run_log_probs(model.spec, *weights, rope, {batch, {}, backend.get()},
                                             1.0f, ActivationType::kFloat32)
                                   .log_prob.cpu();
    ASSERT_EQ(trained.numel(), std::ssize(sampled));
    EXPECT_EQ(std::memcmp(trained.const_data_ptr<float>(), sampled.data(),
                          sampled.size() * sizeof(float)),
              0);
  }
}

// The second scale is 1, for which nothing is multiplied.
INSTANTIATE_TEST_SUITE_P(Models, LoraCuda,
                         ::testing::Values(std::tuple{"dense_untied", "int4_sym7", 48.0},
                                           std::tuple{"dense_untied", "bf16", 32.0},
                                           std::tuple{"moe_mixed", "int4_sym7", 48.0}));

}  // namespace
}  // namespace nibble
