// The engine against Transformers (greedy continuations) and, to the bit, against the trainer's
// executor, however its work is cut.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include <algorithm>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include "tests/core/kernels/thread_parallel.h"
#include "tests/core/models/oracle_model.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

using Samplings = std::vector<kernels::SamplingParams>;

// Three prompts of 11, 5 and 1 tokens with several differently sampled requests each.
std::vector<GenerateRequest> workload(const OracleModel& model) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  const std::vector<std::vector<int32_t>> prompts = {{text.begin(), text.begin() + 11},
                                                     {text.begin() + 11, text.begin() + 16},
                                                     {text.begin() + 16, text.begin() + 17}};
  const std::vector<Samplings> samplings = {
      {{1.0f, 0, 1.0f}, {1.0f, 20, 1.0f}, {0.7f, 0, 0.9f}, {0.0f, 0, 1.0f}},
      {{1.0f, 0, 0.8f}, {1.5f, 0, 1.0f}},
      {{1.0f, 0, 1.0f}}};
  std::vector<GenerateRequest> out;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (size_t s = 0; s < samplings[p].size(); ++s) {
      GenerateRequest request;
      request.id = out.size();
      request.prompt_id = 1000 + p;
      request.sample_index = static_cast<uint32_t>(s);
      request.prompt = prompts[p];
      request.max_new_tokens = 8 - static_cast<int64_t>(s);
      request.sampling = samplings[p][s];
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
  int threads = 1;
  bool is_shared = true;
  int64_t kv_slots = 60;  // not enough for everything at once
  int64_t block_tokens = 16;
};

// `before_step(engine, step)` may swap weights.
using BeforeStep = std::function<void(Engine&, int)>;

std::vector<Completion> generate(const OracleModel& model, const Cut& cut,
                                 ActivationType activations = ActivationType::kFloat32,
                                 const BeforeStep& before_step = {}) {
  const kernels::ThreadParallel threads(cut.threads);
  const kernels::Serial serial;
  const kernels::Parallel& parallel =
      cut.threads == 1 ? static_cast<const kernels::Parallel&>(serial) : threads;
  EngineConfig config;
  config.max_step_tokens = cut.max_step_tokens;
  config.max_running = cut.max_running;
  config.kv_slots = cut.kv_slots;
  config.block_tokens = cut.block_tokens;
  config.max_positions = 32;
  config.max_logit_rows = 3;
  Engine engine(model.spec, config, parallel, activations);
  engine.set_weights(borrowed(*model.weights), 1);
  if (cut.is_shared) {
    submit_all(engine, workload(model));
  } else {
    for (GenerateRequest& request : workload(model)) submit_one(engine, std::move(request));
  }
  for (int step = 0; before_step && engine.has_work(); ++step) {
    before_step(engine, step);
    engine.step();
  }
  std::vector<Completion> done = finish_all(engine);
  EXPECT_EQ(engine.stats().free_slots, engine.config().kv_slots);
  return done;
}

void expect_same_bits(const std::vector<float>& got, const float* want, const std::string& what) {
  ASSERT_EQ(std::memcmp(got.data(), want, got.size() * sizeof(float)), 0) << what;
}

void expect_same(const std::vector<Completion>& got, const std::vector<Completion>& want,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].id, want[i].id);
    ASSERT_EQ(got[i].tokens, want[i].tokens) << what << " request " << i;
    expect_same_bits(got[i].log_probs, want[i].log_probs.data(), what);
    ASSERT_EQ(got[i].routes.positions, want[i].routes.positions);
    ASSERT_EQ(got[i].routes.bytes, want[i].routes.bytes) << what << " request " << i;
  }
}

void expect_routes(const Routes& got, const std::vector<at::Tensor>& want) {
  ASSERT_EQ(got.layers, static_cast<int64_t>(want.size()));
  for (int64_t layer = 0; layer < got.layers; ++layer) {
    const at::Tensor& expert = want[static_cast<size_t>(layer)];
    ASSERT_EQ(got.positions, expert.size(0));
    ASSERT_EQ(got.top_k, expert.size(1));
    for (int64_t i = 0; i < expert.numel(); ++i) {
      ASSERT_EQ(got.expert(i / got.top_k, layer, i % got.top_k),
                expert.const_data_ptr<int32_t>()[i]);
    }
  }
}

// Every request alone, and all of temperature 1 packed together with shared prompts.
void expect_trainers_log_probs(OracleModel& model, const std::vector<Completion>& completions,
                               ActivationType activations) {
  const at::NoGradGuard no_grad;
  const std::vector<GenerateRequest> requests = workload(model);
  std::vector<SequenceGroup> groups;
  std::vector<float> grouped;
  for (size_t i = 0; i < requests.size(); ++i) {
    const SequenceGroup alone{requests[i].prompt, {completions[i].tokens}};
    const float temperature = requests[i].sampling.temperature;
    const PackedBatch batch = pack_groups(std::span(&alone, 1));
    const TapeResult tape = run_log_probs(model.spec, *model.weights, model.rope, {batch},
                                          temperature == 0.0f ? 1.0f : temperature, activations);
    expect_same_bits(completions[i].log_probs, tape.log_prob.data_ptr<float>(), "alone");
    expect_routes(completions[i].routes, tape.routes);
    if (temperature != 1.0f) continue;
    if (groups.empty() || groups.back().prompt != requests[i].prompt) {
      groups.push_back({requests[i].prompt, {}});
    }
    groups.back().responses.push_back(completions[i].tokens);
    grouped.insert(grouped.end(), completions[i].log_probs.begin(), completions[i].log_probs.end());
  }
  const PackedBatch batch = pack_groups(groups);
  const TapeResult tape =
      run_log_probs(model.spec, *model.weights, model.rope, {batch}, 1.0f, activations);
  ASSERT_EQ(tape.log_prob.numel(), static_cast<int64_t>(grouped.size()));
  expect_same_bits(grouped, tape.log_prob.data_ptr<float>(), "packed");
}

class EngineOracle : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  OracleModel model_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

TEST_P(EngineOracle, LogProbsAndRoutesAreTheTrainersToTheBit) {
  for (const auto activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
    const std::vector<Completion> done = generate(model_, {7, 4, 1, true}, activations);
    ASSERT_EQ(done.size(), 7u);
    for (const Completion& completion : done) EXPECT_EQ(completion.reason, FinishReason::kLength);
    expect_trainers_log_probs(model_, done, activations);
  }
}

TEST_P(EngineOracle, SamplesDoNotDependOnHowTheWorkIsCut) {
  const std::vector<Completion> want = generate(model_, {});
  for (const int64_t max_step_tokens : {1, 3, 64}) {
    for (const int64_t max_running : {1, 2, 16}) {
      for (const int threads : {1, 3}) {
        for (const bool is_shared : {true, false}) {
          const Cut cut{max_step_tokens, max_running, threads, is_shared};
          expect_same(generate(model_, cut), want,
                      fmt::format("step {} running {} threads {} shared {}", max_step_tokens,
                                  max_running, threads, is_shared));
        }
      }
    }
  }
}

TEST_P(EngineOracle, SequencesThatAreStoppedForWantOfMemoryLoseNothing) {
  const std::vector<Completion> want = generate(model_, {});
  for (const int64_t block_tokens : {1, 2, 4}) {
    Cut cut;
    cut.kv_slots = 24;
    cut.block_tokens = block_tokens;
    int64_t stopped = 0;
    const auto done = generate(model_, cut, ActivationType::kFloat32, [&](Engine& engine, int) {
      stopped = engine.stats().num_preemptions;
    });
    EXPECT_GT(stopped, 0) << "there was memory enough";
    expect_same(done, want, fmt::format("blocks of {}", block_tokens));
  }
}

TEST_P(EngineOracle, APromptThatBeginsLikeAnEarlierOneIsNotComputedAgain) {
  const kernels::Serial serial;
  const std::vector<Completion> want = generate(model_, {});
  EngineConfig config;
  config.kv_slots = 256;
  config.max_positions = 32;
  config.block_tokens = 4;
  Engine engine(model_.spec, config, serial);
  engine.set_weights(borrowed(*model_.weights), 1);
  submit_all(engine, workload(model_));
  finish_all(engine);
  const EngineStats first = engine.stats();
  EXPECT_GT(first.reusable_slots, 0);
  submit_all(engine, workload(model_));
  const std::vector<Completion> again = finish_all(engine);
  expect_same(again, want, "with prompts from the cache");
  const EngineStats second = engine.stats();
  EXPECT_GT(second.cached_tokens, first.cached_tokens);
  EXPECT_EQ(second.prompt_tokens - first.prompt_tokens,
            first.prompt_tokens - (second.cached_tokens - first.cached_tokens));
  for (const Completion& completion : again) {
    EXPECT_EQ(completion.cached_prompt_tokens % config.block_tokens, 0);
  }
  // Of other weights nothing is found.
  engine.set_weights(borrowed(*model_.weights), 2);
  submit_all(engine, workload(model_));
  finish_all(engine);
  EXPECT_EQ(engine.stats().cached_tokens, second.cached_tokens);
}

TEST_P(EngineOracle, ASampleThatWasAbortedGoesOnLater) {
  const kernels::Serial serial;
  const std::vector<Completion> want = generate(model_, {});
  for (const int steps : {1, 2, 4}) {
    EngineConfig config;
    config.kv_slots = 256;
    config.max_positions = 32;
    Engine engine(model_.spec, config, serial);
    engine.set_weights(borrowed(*model_.weights), 1);
    submit_all(engine, workload(model_));
    for (int i = 0; i < steps; ++i) engine.step();
    for (uint64_t id = 0; id < want.size(); ++id) engine.abort(id);
    std::vector<Completion> part = engine.take_finished();
    std::sort(part.begin(), part.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    Engine other(model_.spec, config, serial);
    other.set_weights(borrowed(*model_.weights), 1);
    std::vector<GenerateRequest> rest = workload(model_);
    for (size_t i = 0; i < rest.size(); ++i) {
      ASSERT_EQ(std::ssize(part[i].tokens), steps);
      rest[i].drawn = std::move(part[i]);
    }
    submit_all(other, std::move(rest));
    expect_same(finish_all(other), want, fmt::format("after {} steps", steps));
  }
}

// Knows what will be drawn, and says something else now and then.
class Oracle final : public Drafter {
 public:
  explicit Oracle(const std::vector<Completion>& samples) {
    for (const Completion& sample : samples) tokens_[sample.id] = sample.tokens;
  }
  void begin(const GenerateRequest& request, std::span<const int32_t>,
             std::span<const int32_t> drawn) override {
    drawn_[request.id] = drawn.size();
  }
  void extend(uint64_t id, int32_t) override { ++drawn_[id]; }
  void end(uint64_t id, bool) override { drawn_.erase(id); }
  void propose(const DraftRound& round, DraftPolicy&) override {
    for (DraftQuery& query : round.queries) {
      const auto& tokens = tokens_.at(query.id);
      for (size_t i = drawn_.at(query.id);
           i < tokens.size() && std::ssize(query.guesses) < query.most; ++i) {
        query.guesses.push_back({random_() % 4 == 0 ? 0 : tokens[i], 1.0f, 3});
      }
    }
  }
  int64_t num_bytes() const override { return 0; }

 private:
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  std::map<uint64_t, size_t> drawn_;
  std::mt19937 random_{1};
};

TEST_P(EngineOracle, GuessesChangeNothingRightOrWrong) {
  const kernels::Serial serial;
  for (const ActivationType activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
    const std::vector<Completion> want = generate(model_, {}, activations);
    for (const int64_t max_step_tokens : {12, 64}) {
      for (const int64_t kv_slots : {24, 256}) {
        EngineConfig config;
        config.max_step_tokens = max_step_tokens;
        config.kv_slots = kv_slots;
        config.block_tokens = 4;
        config.max_positions = 32;
        config.max_draft_tokens = 5;
        config.drafts_adapt = false;
        config.max_logit_rows = 3;
        Engine engine(model_.spec, config, serial, activations, std::make_unique<Oracle>(want));
        engine.set_weights(borrowed(*model_.weights), 1);
        submit_all(engine, workload(model_));
        expect_same(finish_all(engine), want, fmt::format("step {}", max_step_tokens));
        const EngineStats stats = engine.stats();
        EXPECT_GT(stats.accepted_tokens, 0);
        EXPECT_GT(stats.guessed_tokens, stats.accepted_tokens) << "no guess was wrong";
        EXPECT_EQ(stats.decoded_tokens, stats.decode_spans + stats.accepted_tokens);
        EXPECT_EQ(stats.free_slots, engine.config().kv_slots);
      }
    }
  }
}

TEST_P(EngineOracle, TheSamplesOfAnEarlierEpochAreGuessed) {
  const kernels::Serial serial;
  const std::vector<Completion> want = generate(model_, {});
  EngineConfig config;
  config.kv_slots = 256;
  config.max_positions = 32;
  config.max_draft_tokens = 8;
  config.drafts_adapt = false;
  Engine engine(model_.spec, config, serial);
  engine.set_weights(borrowed(*model_.weights), 1);
  submit_all(engine, workload(model_));
  finish_all(engine);
  const int64_t first = engine.stats().accepted_tokens;
  submit_all(engine, workload(model_));
  expect_same(finish_all(engine), want, "the second epoch");
  EXPECT_GT(engine.stats().accepted_tokens, first + 10);
}

TEST_P(EngineOracle, RecomputingTheCacheChangesNeitherSamplesNorRoutes) {
  const std::vector<Completion> want = generate(model_, {});
  for (const int64_t max_step_tokens : {1, 5, 64}) {
    for (const int period : {2, 3, 7}) {
      const Cut cut{max_step_tokens, 3, 1, true};
      int64_t version = 1;
      int swaps = 0;
      const auto done =
          generate(model_, cut, ActivationType::kFloat32, [&](Engine& engine, int step) {
            if (step % period != 0 || swaps == 5) return;
            engine.set_weights(borrowed(*model_.weights), ++version, KvPolicy::kRecompute);
            ++swaps;
          });
      ASSERT_GT(swaps, 1);
      expect_same(done, want, fmt::format("step {} period {}", max_step_tokens, period));
    }
  }
}

TEST_P(EngineOracle, TokensThatAreRecomputedKeepTheirFirstRoutes) {
  // Routers with their rows turned round choose other experts.
  ResidentWeights other(model_.spec.table, model_.weights->plan());
  bool has_routers = false;
  for (int64_t p = 0; p < model_.spec.table.size(); ++p) {
    other.stored(p) = std::as_const(*model_.weights).stored(p);
    if (model_.spec.table.at(p).name().find("mlp.gate.weight") == std::string::npos) continue;
    auto& values = other.stored(p).bf16;
    std::reverse(values.begin(), values.end());
    has_routers = true;
  }
  if (!has_routers) return;  // a dense model
  const std::vector<Completion> before = generate(model_, {});
  const auto done = generate(model_, {}, ActivationType::kFloat32, [&](Engine& engine, int step) {
    if (step == 3) engine.set_weights(borrowed(other), 2, KvPolicy::kRecompute);
  });
  int64_t changed = 0;
  int64_t began_before = 0;
  for (size_t i = 0; i < done.size(); ++i) {
    const Routes& routes = done[i].routes;
    const auto prompt = routes.positions - std::ssize(done[i].tokens) + 1;
    const auto kept = std::count(done[i].versions.begin(), done[i].versions.end(), 1);
    const auto per_position = routes.layers * routes.top_k * routes.bytes_per_expert;
    ASSERT_EQ(std::ssize(routes.bytes), routes.positions * per_position);
    if (kept == 0) continue;  // began after the swap
    ++began_before;
    // The last token of before was computed after the swap.
    const auto first = (prompt + kept - 1) * per_position;
    ASSERT_TRUE(std::equal(routes.bytes.begin(), routes.bytes.begin() + first,
                           before[i].routes.bytes.begin()));
    changed += std::ssize(done[i].tokens) > kept && routes.bytes != before[i].routes.bytes ? 1 : 0;
  }
  EXPECT_GT(began_before, 2);
  EXPECT_GT(changed, 0) << "the other routers choose the same experts";
}

TEST_P(EngineOracle, GreedyTokensMatchTransformers) {
  if (std::get<1>(GetParam()) != "bf16") return;  // the fixture has those of BF16 weights
  const auto ids = [&](const std::string& name) {
    const TensorView view = model_.io.tensor(name);
    const auto* values = view.as<int64_t>();
    return std::vector<int32_t>(values, values + view.bytes.size() / sizeof(int64_t));
  };
  const std::vector<int32_t> want = ids("greedy.tokens");
  const kernels::Serial serial;
  EngineConfig config;
  config.max_positions = 64;
  config.kv_slots = 128;
  config.max_step_tokens = 4;
  Engine engine(model_.spec, config, serial);
  engine.set_weights(borrowed(*model_.weights), 1);
  GenerateRequest request;
  request.prompt = ids("greedy.prompt");
  request.max_new_tokens = std::ssize(want);
  request.sampling.temperature = 0.0f;
  submit_one(engine, std::move(request));
  EXPECT_EQ(finish_all(engine)[0].tokens, want);
}

INSTANTIATE_TEST_SUITE_P(Models, EngineOracle,
                         ::testing::Combine(::testing::ValuesIn(oracle_names()),
                                            ::testing::Values("bf16", "int4_sym7")),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" + std::get<1>(param.param);
                         });

}  // namespace
}  // namespace nibble
