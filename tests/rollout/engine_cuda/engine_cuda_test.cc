// The engine on the GPU: in `exact` its log-probabilities and routes are the trainer's to the bit,
// however its work is cut and with CUDA graphs or without; graphs survive a swap of weights.
#include "rollout/engine_cuda/cuda_step_runner.h"

#include <cstring>

#include "rollout/engine/head_drafter.h"
#include "rollout/engine/head_weights.h"
#include "rollout/engine/model_drafter.h"
#include "tests/core/models_cuda/gpu_backend.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

std::vector<GenerateRequest> workload(const OracleModel& model) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  const std::vector<std::vector<int32_t>> prompts = {{text.begin(), text.begin() + 11},
                                                     {text.begin() + 11, text.begin() + 16},
                                                     {text.begin() + 16, text.begin() + 17}};
  std::vector<GenerateRequest> out;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (uint32_t s = 0; s < 4; ++s) {
      GenerateRequest request;
      request.id = out.size();
      request.prompt_id = 1000 + p;
      request.sample_index = s;
      request.prompt = prompts[p];
      request.max_new_tokens = 9 - s;
      request.sampling = {1.0f, s == 1 ? 20 : 0, s == 2 ? 0.9f : 1.0f};
      request.seed = 99;
      request.want_routes = true;
      out.push_back(std::move(request));
    }
  }
  return out;
}

struct Cut {
  int64_t max_step_tokens = 64;
  int64_t max_running = 16;
  std::vector<int64_t> graphs;
  int64_t kv_slots = 80;  // not enough for everything at once
  int64_t block_tokens = 16;
  int64_t max_draft_tokens = 0;
};

std::unique_ptr<Engine> make_engine(const GpuModel& model, Numerics numerics, const Cut& cut) {
  EngineConfig config;
  config.max_step_tokens = cut.max_step_tokens;
  config.max_running = cut.max_running;
  config.kv_slots = cut.kv_slots;
  config.block_tokens = cut.block_tokens;
  config.max_draft_tokens = cut.max_draft_tokens;
  config.drafts_adapt = false;
  config.max_positions = 32;
  config.max_logit_rows = 8;
  return std::make_unique<Engine>(model.host.spec, config,
                                  cuda_step_runner(*model.backend, {numerics, cut.graphs}));
}

std::vector<Completion> generate(const GpuModel& model, Numerics numerics, const Cut& cut) {
  const auto engine = make_engine(model, numerics, cut);
  engine->set_weights(borrowed(*model.weights), 1);
  submit_all(*engine, workload(model.host));
  return finish_all(*engine);
}

void expect_same(const std::vector<Completion>& got, const std::vector<Completion>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].tokens, want[i].tokens) << "request " << i;
    ASSERT_EQ(std::memcmp(got[i].log_probs.data(), want[i].log_probs.data(),
                          got[i].log_probs.size() * sizeof(float)),
              0);
    ASSERT_EQ(got[i].routes.bytes, want[i].routes.bytes);
  }
}

const std::vector<Cut> kCuts = {{64, 16, {}}, {7, 4, {}}, {64, 16, {1, 2, 4, 8}}, {5, 3, {2, 4}}};

class EngineCuda : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  void SetUp() override {
    if (!use_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
  GpuModel model(Numerics numerics) const {
    return {std::get<0>(GetParam()), std::get<1>(GetParam()), numerics};
  }
};

TEST_P(EngineCuda, ExactSamplesDoNotDependOnCutsOrGraphsAndAreTheTrainersToTheBit) {
  GpuModel gpu = model(Numerics::kExact);
  const std::vector<Completion> want = generate(gpu, Numerics::kExact, kCuts[0]);
  for (const Cut& cut : kCuts) expect_same(generate(gpu, Numerics::kExact, cut), want);

  // The trainer's view: each prompt with all its responses.
  const std::vector<GenerateRequest> requests = workload(gpu.host);
  std::vector<SequenceGroup> groups;
  std::vector<float> sampled;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % 4 == 0) groups.push_back({requests[i].prompt, {}});
    groups.back().responses.push_back(want[i].tokens);
    sampled.insert(sampled.end(), want[i].log_probs.begin(), want[i].log_probs.end());
  }
  const auto trained = gpu.log_probs(pack_groups(groups));
  ASSERT_EQ(trained.size(), sampled.size());
  EXPECT_EQ(std::memcmp(trained.data(), sampled.data(), sampled.size() * sizeof(float)), 0);
}

// All of a group draw their first token behind one row of one step, whatever a step's size.
TEST_P(EngineCuda, AGroupMayBeLargerThanAStepAndTheBatch) {
  GpuModel gpu = model(Numerics::kExact);
  std::vector<Completion> want;
  for (const Cut& cut : {Cut{512, 512, {}}, Cut{16, 4, {}}, Cut{4, 4, {1, 2, 4}}}) {
    const auto engine = make_engine(gpu, Numerics::kExact, cut);
    engine->set_weights(borrowed(*gpu.weights), 1);
    std::vector<GenerateRequest> group;
    for (uint32_t s = 0; s < 300; ++s) {
      GenerateRequest request;
      request.id = s;
      request.sample_index = s;
      request.prompt = {3, 1, 4, 1, 5};
      request.max_new_tokens = 3;
      request.seed = 7;
      group.push_back(std::move(request));
    }
    submit_all(*engine, std::move(group));
    const std::vector<Completion> got = finish_all(*engine);
    if (want.empty()) want = got;
    expect_same(got, want);
  }
}

// Samples that are stopped for want of memory; prompts from the cache; guesses, in steps with and
// without a graph.
TEST_P(EngineCuda, ExactSamplesDoNotDependOnMemoryCacheOrGuesses) {
  GpuModel gpu = model(Numerics::kExact);
  const std::vector<Completion> want = generate(gpu, Numerics::kExact, kCuts[0]);
  for (const std::vector<int64_t>& graphs : {std::vector<int64_t>{}, {1, 2, 4, 8}}) {
    for (const int64_t draft : {0, 5}) {
      const Cut scarce{64, 16, graphs, 28, 2, draft};
      const auto small = make_engine(gpu, Numerics::kExact, scarce);
      small->set_weights(borrowed(*gpu.weights), 1);
      submit_all(*small, workload(gpu.host));
      expect_same(finish_all(*small), want);
      EXPECT_GT(small->stats().num_preemptions, 0);

      const Cut roomy{64, 16, graphs, 512, 4, draft};
      const auto large = make_engine(gpu, Numerics::kExact, roomy);
      large->set_weights(borrowed(*gpu.weights), 1);
      for (int epoch = 0; epoch < 2; ++epoch) {
        submit_all(*large, workload(gpu.host));
        expect_same(finish_all(*large), want);
      }
      EXPECT_GT(large->stats().cached_tokens, 0);
      EXPECT_EQ(large->stats().accepted_tokens > 0, draft > 0);
    }
  }
}

// The model as its own draft, in `exact`: never wrong, in steps with and without a graph.
TEST_P(EngineCuda, ADraftModelChangesNothing) {
  GpuModel gpu = model(Numerics::kExact);
  const std::vector<Completion> want = generate(gpu, Numerics::kExact, kCuts[0]);
  EngineConfig config;
  config.kv_slots = 512;
  config.max_positions = 32;
  config.max_logit_rows = 8;
  config.max_draft_tokens = 4;
  config.drafts_adapt = false;
  for (const Numerics numerics : {Numerics::kExact, Numerics::kFast}) {
    for (const std::vector<int64_t>& graphs : {std::vector<int64_t>{}, {1, 2, 4, 8}}) {
      const auto make_runner = cuda_step_runner(*gpu.backend, {numerics, graphs});
      Engine engine(gpu.host.spec, config,
                    cuda_step_runner(*gpu.backend, {Numerics::kExact, graphs}), nullptr,
                    std::make_unique<ModelDrafter>(
                        gpu.host.spec, config, make_runner,
                        ModelDrafter::Options{.draws_in_every_row = !graphs.empty()}));
      engine.set_weights(borrowed(*gpu.weights), 1);
      engine.set_draft_weights(borrowed(*gpu.weights), 1);
      submit_all(engine, workload(gpu.host));
      expect_same(finish_all(engine), want);
      const EngineStats stats = engine.stats();
      EXPECT_GT(stats.accepted_tokens, 0);
      if (numerics == Numerics::kExact) {
        EXPECT_EQ(stats.accepted_tokens, stats.guessed_tokens);
      }
    }
  }
}

// A step's states are the same with a graph and without, so the head's guesses are, and how many of
// them come true.
TEST_P(EngineCuda, ADraftHeadChangesNothingAndGuessesTheSameBehindGraphs) {
  GpuModel gpu = model(Numerics::kExact);
  const std::vector<Completion> want = generate(gpu, Numerics::kExact, kCuts[0]);
  const ModelSpec head = draft_head_spec(gpu.host.spec.config);
  const auto weights = random_head_weights(head.table, 1);
  std::vector<StoredParameter> on_gpu;
  for (const StoredParameter& stored : weights->parameters()) {
    on_gpu.push_back(stored.to(DeviceKind::kCuda));
  }
  const auto own = own_head_weights(head.table, std::move(on_gpu), DeviceKind::kCuda);
  EngineConfig config;
  config.max_step_tokens = 64;
  config.max_running = 16;
  config.kv_slots = 512;
  config.max_positions = 32;
  config.max_logit_rows = 64;
  config.max_draft_tokens = 3;
  config.drafts_adapt = false;
  std::vector<EngineStats> stats;
  for (const std::vector<int64_t>& graphs : {std::vector<int64_t>{}, {8, 24, 64}}) {
    Engine engine(gpu.host.spec, config, cuda_step_runner(*gpu.backend, {Numerics::kExact, graphs}),
                  nullptr,
                  std::make_unique<HeadDrafter>(
                      head, gpu.host.spec, config,
                      cuda_step_runner(*gpu.backend, {.numerics = Numerics::kExact}),
                      HeadDrafter::Options()));
    engine.set_weights(borrowed(*gpu.weights), 1);
    engine.set_draft_weights(borrowed(*own), 1);
    submit_all(engine, workload(gpu.host));
    expect_same(finish_all(engine), want);
    stats.push_back(engine.stats());
  }
  EXPECT_GT(stats[0].guessed_tokens, 20);
  EXPECT_EQ(stats[0].guessed_tokens, stats[1].guessed_tokens);
  EXPECT_EQ(stats[0].accepted_tokens, stats[1].accepted_tokens);
}

TEST_P(EngineCuda, LogProbsAtTemperatureOneAndOfTheLikeliestTokens) {
  GpuModel gpu = model(Numerics::kExact);
  for (const Cut& cut : {kCuts[0], kCuts[2]}) {
    const auto engine = make_engine(gpu, Numerics::kExact, cut);
    engine->set_weights(borrowed(*gpu.weights), 1);
    std::vector<GenerateRequest> requests = workload(gpu.host);
    for (GenerateRequest& request : requests) {
      request.sampling.top_k = 1;  // the likeliest
      request.want_plain_log_probs = true;
      request.num_top_log_probs = 3;
    }
    submit_all(*engine, std::move(requests));
    for (const Completion& done : finish_all(*engine)) {
      ASSERT_EQ(done.plain_log_probs.size(), done.tokens.size());
      for (size_t t = 0; t < done.tokens.size(); ++t) {
        ASSERT_EQ(done.top_log_probs[t].size(), 3u);
        EXPECT_EQ(done.top_log_probs[t][0].token, done.tokens[t]);
        EXPECT_EQ(done.top_log_probs[t][0].log_prob, done.plain_log_probs[t]);
        // The CPU's exponential and the GPU's, of the same logits.
        EXPECT_NEAR(done.plain_log_probs[t], done.log_probs[t], 1e-4);
        EXPECT_GE(done.top_log_probs[t][0].log_prob, done.top_log_probs[t][1].log_prob);
      }
    }
  }
}

TEST_P(EngineCuda, FastSamplesHaveLogProbsNearTheTrainers) {
  GpuModel gpu = model(Numerics::kFast);
  const bool moe = gpu.host.spec.config.num_moe_layers() > 0;
  const std::vector<GenerateRequest> requests = workload(gpu.host);
  for (const Cut& cut : {kCuts[0], kCuts[2]}) {
    const std::vector<Completion> done = generate(gpu, Numerics::kFast, cut);
    double mean = 0.0;
    size_t count = 0;
    for (size_t i = 0; i < done.size(); ++i) {
      const SequenceGroup alone{requests[i].prompt, {done[i].tokens}};
      const auto trained = gpu.log_probs(pack_groups(std::span(&alone, 1)));
      for (size_t t = 0; t < trained.size(); ++t) {
        mean += std::fabs(trained[t] - done[i].log_probs[t]);
        ++count;
      }
    }
    EXPECT_LT(mean / static_cast<double>(count), moe ? 0.05 : 0.02);
  }
}

TEST_P(EngineCuda, GraphsSurviveASwapOfWeights) {
  GpuModel gpu = model(Numerics::kExact);
  // Other weights of the same shapes: another final norm changes every logit.
  auto other = gpu.host.weights->to(DeviceKind::kCpu);
  for (uint16_t& bits : other->stored(gpu.host.spec.table.final_norm).bf16) bits ^= 0x0060;
  const auto other_on_gpu = other->to(DeviceKind::kCuda);
  const Cut cut{64, 16, {1, 2, 4, 8}};
  const auto swapped = make_engine(gpu, Numerics::kExact, cut);
  swapped->set_weights(borrowed(*gpu.weights), 1);
  submit_all(*swapped, workload(gpu.host));
  const auto first = finish_all(*swapped);
  swapped->set_weights(borrowed(*other_on_gpu), 2);
  submit_all(*swapped, workload(gpu.host));
  const auto second = finish_all(*swapped);
  const auto fresh = make_engine(gpu, Numerics::kExact, cut);
  fresh->set_weights(borrowed(*other_on_gpu), 1);
  submit_all(*fresh, workload(gpu.host));
  expect_same(second, finish_all(*fresh));
  bool differs = false;
  for (size_t i = 0; i < first.size(); ++i) {
    differs = differs || first[i].log_probs != second[i].log_probs;
  }
  EXPECT_TRUE(differs);
}

// Batches that are multiplied with dequantized panels.
class ManySequences
    : public ::testing::TestWithParam<std::tuple<std::string, std::string, Numerics>> {
 protected:
  void SetUp() override {
    if (!use_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_P(ManySequences, GraphsSurviveASwapOfWeightsAndExactIsTheTrainersToTheBit) {
  const Numerics numerics = std::get<2>(GetParam());
  GpuModel gpu(std::get<0>(GetParam()), std::get<1>(GetParam()), numerics);
  auto other = gpu.host.weights->to(DeviceKind::kCpu);
  const LayerParameters& layer = gpu.host.spec.table.layers[0];
  for (const int64_t p : {layer.q, layer.o}) {
    for (uint32_t& word : other->stored(p).words) word ^= 0x11111111u;
    for (uint16_t& bits : other->stored(p).bf16) bits ^= 0x0040;
  }
  const auto other_on_gpu = other->to(DeviceKind::kCuda);
  EngineConfig config;
  config.max_step_tokens = 128;
  config.max_running = config.max_logit_rows = 80;
  config.kv_slots = 4096;
  config.max_positions = 32;
  const auto make = [&](const std::vector<int64_t>& graphs) {
    return std::make_unique<Engine>(gpu.host.spec, config,
                                    cuda_step_runner(*gpu.backend, {numerics, graphs}));
  };
  const std::vector<int64_t> graphs = {24, 40, 72, 80};
  const auto sample = [&](Engine& engine, uint64_t count) {
    std::vector<GenerateRequest> requests;
    for (uint64_t i = 0; i < count; ++i) {
      GenerateRequest request;
      request.id = i;
      request.prompt_id = i;
      request.prompt = {static_cast<int32_t>(i % 50 + 1), 7};
      request.max_new_tokens = 6;
      request.seed = 5;
      requests.push_back(std::move(request));
    }
    submit_all(engine, std::move(requests));
    return finish_all(engine);
  };
  const auto swapped = make(graphs);
  swapped->set_weights(borrowed(*gpu.weights), 1);
  const auto first = sample(*swapped, 80);
  if (numerics == Numerics::kExact) {
    // Fewer sequences take other graphs, one sequence the kernel of few tokens; no graphs at all.
    for (const uint64_t count : {39, 23, 1}) {
      const auto some = sample(*swapped, count);
      expect_same(some, {first.begin(), first.begin() + static_cast<std::ptrdiff_t>(count)});
    }
    const auto without = make({});
    without->set_weights(borrowed(*gpu.weights), 1);
    expect_same(sample(*without, 80), first);
    std::vector<SequenceGroup> groups;
    std::vector<float> sampled;
    for (size_t i = 0; i < first.size(); ++i) {
      groups.push_back({{static_cast<int32_t>(i % 50 + 1), 7}, {first[i].tokens}});
      sampled.insert(sampled.end(), first[i].log_probs.begin(), first[i].log_probs.end());
    }
    const auto trained = gpu.log_probs(pack_groups(groups));
    ASSERT_EQ(trained.size(), sampled.size());
    EXPECT_EQ(std::memcmp(trained.data(), sampled.data(), sampled.size() * sizeof(float)), 0);
  }
  swapped->set_weights(borrowed(*other_on_gpu), 2);
  const auto second = sample(*swapped, 80);
  const auto fresh = make(graphs);
  fresh->set_weights(borrowed(*other_on_gpu), 1);
  expect_same(second, sample(*fresh, 80));
  EXPECT_NE(first[0].log_probs, second[0].log_probs);
}

INSTANTIATE_TEST_SUITE_P(Models, ManySequences,
                         ::testing::Combine(::testing::ValuesIn(oracle_names()),
                                            ::testing::Values("bf16", "int4_sym7"),
                                            ::testing::Values(Numerics::kFast, Numerics::kExact)),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" + std::get<1>(param.param) +
                                  (std::get<2>(param.param) == Numerics::kFast ? "_fast"
                                                                               : "_exact");
                         });

INSTANTIATE_TEST_SUITE_P(Models, EngineCuda,
                         ::testing::Combine(::testing::ValuesIn(oracle_names()),
                                            ::testing::Values("bf16", "int4_sym7")),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" + std::get<1>(param.param);
                         });

TEST(GraphBatches, AreOneTwoFourEightThenEveryEight) {
  EXPECT_EQ(default_graph_batches(32), (std::vector<int64_t>{1, 2, 4, 8, 16, 24, 32}));
  EXPECT_EQ(default_graph_batches(20), (std::vector<int64_t>{1, 2, 4, 8, 16, 20}))
      << "a full batch has a graph too";
  EXPECT_EQ(default_graph_batches(3), (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(default_graph_batches(0), std::vector<int64_t>{});
}

}  // namespace
}  // namespace nibble
