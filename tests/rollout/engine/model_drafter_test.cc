// A draft model: changes no sample, whatever it guesses and however little room it has; is always
// right where it is the model itself, so that a wrong key in its cache would show.
#include "rollout/engine/model_drafter.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "core/base/error.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "rollout/engine/lookup_drafter.h"
#include "tests/core/models/oracle_model.h"
#include "tests/rollout/engine/draft_workload.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

// What the steps of a model were.
struct Steps {
  int64_t count = 0;
  int64_t tokens = 0;
};

class CountingRunner final : public StepRunner {
 public:
  CountingRunner(std::unique_ptr<StepRunner> inner, Steps& steps)
      : inner_(std::move(inner)), steps_(steps) {}
  void set_weights(const ops::WeightSource& weights, int64_t version) override {
    inner_->set_weights(weights, version);
  }
  void run(StepPlan& plan, const int32_t* slot_table) override {
    ++steps_.count;
    steps_.tokens += plan.num_tokens();
    inner_->run(plan, slot_table);
  }
  std::span<const int32_t> routes(int64_t layer) const override { return inner_->routes(layer); }

 private:
  const std::unique_ptr<StepRunner> inner_;
  Steps& steps_;
};

struct Draft {
  const ModelSpec* spec = nullptr;
  const ops::WeightSource* weights = nullptr;
  EngineConfig config;  // of the draft
  ModelDrafter::Options options;
  ActivationType activations = ActivationType::kFloat32;
};

const kernels::Serial kSerial;

std::unique_ptr<ModelDrafter> make_drafter(const Draft& draft, Steps* steps = nullptr) {
  return std::make_unique<ModelDrafter>(
      *draft.spec, draft.config,
      [&](const ModelSpec& spec, const EngineConfig& config) -> std::unique_ptr<StepRunner> {
        auto runner = make_cpu_step_runner(spec, config, kSerial, draft.activations);
        if (steps == nullptr) return runner;
        return std::make_unique<CountingRunner>(std::move(runner), *steps);
      },
      draft.options);
}

std::unique_ptr<Engine> make_engine(const ModelSpec& spec, const ops::WeightSource& weights,
                                    const EngineConfig& config, const Draft& draft,
                                    Steps* steps = nullptr) {
  auto engine = std::make_unique<Engine>(spec, config, kSerial, draft.activations, nullptr,
                                         make_drafter(draft, steps));
  engine->set_weights(borrowed(weights), 1);
  engine->set_draft_weights(borrowed(*draft.weights), 1);
  return engine;
}

std::vector<Completion> samples_without(const ModelSpec& spec, const ops::WeightSource& weights,
                                        EngineConfig config, ActivationType activations,
                                        std::vector<GenerateRequest> requests) {
  config.max_draft_tokens = 0;
  Engine engine(spec, config, kSerial, activations);
  engine.set_weights(borrowed(weights), 1);
  submit_all(engine, std::move(requests));
  return finish_all(engine);
}

EngineConfig engine_config() {
  EngineConfig config;
  config.kv_slots = 512;
  config.block_tokens = 4;
  config.max_positions = 32;
  config.max_draft_tokens = 5;
  config.drafts_adapt = false;
  return config;
}

class DraftOracle : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  OracleModel model_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

// However little room the draft has: steps, samples with a place, cache, blocks, logits.
TEST_P(DraftOracle, TheModelItselfIsAlwaysRightAndChangesNothing) {
  for (const ActivationType activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
    const std::vector<Completion> want = samples_without(
        model_.spec, *model_.weights, engine_config(), activations, draft_workload(model_, 16));
    for (const int64_t step_tokens : {3, 16, 256}) {
      for (const auto& [max_running, kv_slots] :
           std::vector<std::pair<int64_t, int64_t>>{{64, 512}, {3, 512}, {64, 40}}) {
        for (const bool every_row : {false, true}) {
          Draft draft{
              &model_.spec, model_.weights.get(), engine_config(), {every_row}, activations};
          draft.config.max_step_tokens = step_tokens;
          draft.config.max_running = max_running;
          draft.config.kv_slots = kv_slots;
          draft.config.max_logit_rows = every_row ? 64 : 2;
          const auto engine = make_engine(model_.spec, *model_.weights, engine_config(), draft);
          submit_all(*engine, draft_workload(model_, 16));
          const std::string what =
              fmt::format("steps {} samples {} slots {}", step_tokens, max_running, kv_slots);
          expect_same(finish_all(*engine), want, what);
          const EngineStats stats = engine->stats();
          EXPECT_GT(stats.guessed_tokens, 10) << what;
          EXPECT_EQ(stats.accepted_tokens, stats.guessed_tokens) << what;
          EXPECT_GT(stats.draft_ms, 0.0);
        }
      }
    }
  }
}

TEST_P(DraftOracle, WithRoomForAllTheModelItselfGuessesAllThereIs) {
  const Draft draft{&model_.spec, model_.weights.get(), engine_config()};
  const auto engine = make_engine(model_.spec, *model_.weights, engine_config(), draft);
  submit_all(*engine, draft_workload(model_, 16));
  const std::vector<Completion> done = finish_all(*engine);
  // Of n tokens the first comes with the prompt; a step then brings one and five guesses.
  int64_t spans = 0;
  for (const Completion& completion : done) spans += (std::ssize(completion.tokens) - 1 + 5) / 6;
  EXPECT_EQ(engine->stats().decode_spans, spans);
}

TEST_P(DraftOracle, ScarceMemoryOfTheEngineAndAGreedyDraftChangeNothing) {
  for (const bool is_greedy : {false, true}) {
    EngineConfig config = engine_config();
    config.kv_slots = 36;
    config.max_step_tokens = 12;
    const auto want =
        samples_without(model_.spec, *model_.weights, engine_config(), ActivationType::kFloat32,
                        draft_workload(model_, 16, is_greedy));
    const Draft draft{&model_.spec, model_.weights.get(), engine_config()};
    const auto engine = make_engine(model_.spec, *model_.weights, config, draft);
    submit_all(*engine, draft_workload(model_, 16, is_greedy));
    expect_same(finish_all(*engine), want, "scarce");
    EXPECT_GT(engine->stats().num_preemptions, 0);
    EXPECT_GT(engine->stats().accepted_tokens, 0);
    EXPECT_EQ(engine->stats().accepted_tokens, engine->stats().guessed_tokens);
    EXPECT_EQ(engine->stats().free_slots, engine->config().kv_slots);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, DraftOracle,
    ::testing::Combine(::testing::Values("dense_untied", "dense_tied", "moe_mixed", "llama_smol"),
                       ::testing::Values("bf16", "int4_sym7")),
    [](const auto& param) { return std::get<0>(param.param) + "_" + std::get<1>(param.param); });

TEST(ModelDrafter, AnInt4CopyGuessesForItsBf16OriginalAndBesideLookUp) {
  OracleModel model("dense_untied", "bf16");
  OracleModel copy("dense_untied", "int4_sym7");
  for (const bool is_greedy : {false, true}) {
    const auto want =
        samples_without(model.spec, *model.weights, engine_config(), ActivationType::kFloat32,
                        draft_workload(model, 16, is_greedy));
    const Draft draft{&copy.spec, copy.weights.get(), engine_config()};
    for (const bool looks_up : {false, true}) {
      for (const bool adapts : {false, true}) {
        EngineConfig config = engine_config();
        config.drafts_adapt = adapts;
        Engine engine(model.spec, config, kSerial, ActivationType::kFloat32,
                      looks_up ? std::make_unique<LookupDrafter>() : nullptr, make_drafter(draft));
        engine.set_weights(borrowed(*model.weights), 1);
        engine.set_draft_weights(borrowed(*copy.weights), 1);
        for (int epoch = 0; epoch < 2; ++epoch) {
          submit_all(engine, draft_workload(model, 16, is_greedy));
          expect_same(finish_all(engine), want, "INT4 for BF16");
        }
        const EngineStats stats = engine.stats();
        EXPECT_GT(stats.accepted_tokens, 20);
        if (adapts) continue;
        EXPECT_GT(stats.guessed_tokens, stats.accepted_tokens) << "none was wrong";
      }
    }
  }
}

TEST(ModelDrafter, GuessesForAllSamplesInOneStepAndComputesAPromptOnce) {
  OracleModel model("dense_tied", "bf16");
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  const auto requests = [&](uint64_t first, size_t prompt_tokens) {
    std::vector<GenerateRequest> out;
    for (uint64_t s = 0; s < 8; ++s) {
      GenerateRequest request;
      request.id = first + s;
      request.sample_index = static_cast<uint32_t>(s);
      request.prompt.assign(text.begin(), text.begin() + static_cast<ptrdiff_t>(prompt_tokens));
      request.max_new_tokens = 7;
      out.push_back(std::move(request));
    }
    return out;
  };
  Steps steps;
  const Draft draft{&model.spec, model.weights.get(), engine_config()};
  const auto engine = make_engine(model.spec, *model.weights, engine_config(), draft, &steps);
  submit_all(*engine, requests(0, 9));
  finish_all(*engine);
  // One token each with the prompt; then, in one step, all five guesses of all eight.
  EXPECT_EQ(steps.count, 5);
  EXPECT_EQ(steps.tokens, 9 + 8 * 5);
  // A prompt that begins like it: its first two blocks are there.
  submit_all(*engine, requests(8, 12));
  finish_all(*engine);
  EXPECT_EQ(steps.tokens, 9 + 8 * 5 + (12 - 8) + 8 * 5);
}

TEST(ModelDrafter, AConversationGoesOnWithWhatWasSaid) {
  OracleModel model("dense_tied", "bf16");
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  Steps steps;
  const Draft draft{&model.spec, model.weights.get(), engine_config()};
  const auto engine = make_engine(model.spec, *model.weights, engine_config(), draft, &steps);
  const auto say = [&](std::vector<int32_t> prompt) {
    GenerateRequest request;
    request.prompt = std::move(prompt);
    request.max_new_tokens = 9;
    submit_one(*engine, std::move(request));
    return finish_all(*engine).at(0).tokens;
  };
  std::vector<int32_t> prompt(text.begin(), text.begin() + 7);
  const std::vector<int32_t> answer = say(prompt);
  const int64_t before = steps.tokens;
  prompt.insert(prompt.end(), answer.begin(), answer.end());
  say(prompt);
  // Computed anew: what the first answer's draft did not compute, in whole blocks; and eight
  // guesses.
  EXPECT_LE(steps.tokens - before, 8 + 9);
}

// A request's sample does not depend on the schedule; so each is compared with what it is alone.
struct Traffic {
  explicit Traffic(unsigned seed) : random(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  }
  std::mt19937 random;
};

struct Totals {
  int64_t guessed = 0, accepted = 0, preemptions = 0, aborted = 0, displaced = 0;
};

GenerateRequest random_request(Traffic& traffic, uint64_t id) {
  GenerateRequest request;
  request.id = id;
  request.prompt_id = static_cast<uint64_t>(traffic.between(0, 2));
  request.sample_index = static_cast<uint32_t>(traffic.between(0, 3));
  // Few beginnings, so that many begin alike.
  const int64_t prompt = traffic.between(1, 12);
  for (int64_t t = 0; t < prompt; ++t) {
    request.prompt.push_back(static_cast<int32_t>((request.prompt_id * 5 + 3 * t) % 16));
  }
  request.max_new_tokens = traffic.between(1, 20);
  request.sampling.temperature = traffic.between(0, 3) == 0 ? 0.0f : 1.0f;
  request.seed = 7;
  request.priority = static_cast<int32_t>(traffic.between(-1, 1));
  if (traffic.between(0, 2) == 0) request.stop_ids = {static_cast<int32_t>(traffic.between(0, 15))};
  return request;
}

GenerateRequest copy_of(const GenerateRequest& request) {
  GenerateRequest copy;
  copy.id = request.id;
  copy.prompt_id = request.prompt_id;
  copy.sample_index = request.sample_index;
  copy.prompt = request.prompt;
  copy.max_new_tokens = request.max_new_tokens;
  copy.sampling = request.sampling;
  copy.seed = request.seed;
  copy.stop_ids = request.stop_ids;
  return copy;
}

// The sample, or the beginning of it that an abort left.
void expect_as_alone(const RandomModel& model, const GenerateRequest& request,
                     const Completion& done) {
  EngineConfig config;
  config.max_positions = 64;
  config.kv_slots = 64;
  const auto alone = [&] {
    std::vector<GenerateRequest> one;
    one.push_back(copy_of(request));
    return samples_without(model.spec, model.weights, config, ActivationType::kFloat32,
                           std::move(one))
        .at(0);
  }();
  const bool is_aborted = done.reason == FinishReason::kAborted;
  ASSERT_EQ(done.reason, is_aborted ? done.reason : alone.reason);
  ASSERT_LE(done.tokens.size(), alone.tokens.size());
  ASSERT_TRUE(is_aborted || done.tokens.size() == alone.tokens.size());
  ASSERT_TRUE(std::equal(done.tokens.begin(), done.tokens.end(), alone.tokens.begin()));
  ASSERT_TRUE(std::equal(done.log_probs.begin(), done.log_probs.end(), alone.log_probs.begin()));
}

// `swaps`: the draft's weights change between the model's own and others now and then.
void run_traffic(unsigned seed, bool swaps, bool looks_up, Totals& totals) {
  static RandomModel model(16);
  static RandomModel other(16, 2);
  Traffic traffic(seed);
  EngineConfig config;
  config.block_tokens = std::vector<int64_t>{1, 2, 3, 4, 16}[seed % 5];
  config.kv_slots = traffic.between(32, 90);
  config.max_positions = 32;
  config.max_running = traffic.between(1, 6);
  config.max_step_tokens = traffic.between(1, 24);
  config.max_draft_tokens = traffic.between(1, 6);
  config.drafts_adapt = seed % 3 == 0;
  EngineConfig drafts = config;
  drafts.kv_slots = traffic.between(8, 90);
  drafts.max_running = traffic.between(1, 6);
  drafts.max_step_tokens = traffic.between(1, 24);
  drafts.max_positions = traffic.between(16, 32);
  drafts.block_tokens = traffic.between(1, 5);
  const Draft draft{&model.spec, &model.weights, drafts, {traffic.between(0, 1) == 0}};
  auto drafter = make_drafter(draft);
  const ModelDrafter& watched = *drafter;
  Engine engine(model.spec, config, kSerial, ActivationType::kFloat32,
                looks_up ? std::make_unique<LookupDrafter>() : nullptr, std::move(drafter));
  engine.set_weights(borrowed(model.weights), 1);
  int64_t draft_version = 0;
  engine.set_draft_weights(borrowed(model.weights), ++draft_version);
  std::map<uint64_t, GenerateRequest> requests;
  uint64_t submitted = 0;
  size_t finished = 0;
  for (int step = 0; step < 60 || engine.has_work(); ++step) {
    ASSERT_LT(step, 20000) << "no progress";
    if (step < 60 && traffic.between(0, 2) == 0) {
      std::vector<GenerateRequest> group;
      for (int64_t i = 0; i < traffic.between(1, 4); ++i) {
        group.push_back(random_request(traffic, submitted++));
        requests[group.back().id] = copy_of(group.back());
      }
      submit_all(engine, std::move(group));
    }
    if (submitted > 0 && traffic.between(0, 9) == 0) {
      const auto id =
          static_cast<uint64_t>(traffic.between(0, static_cast<int64_t>(submitted) - 1));
      totals.aborted += engine.abort(id) ? 1 : 0;
    }
    if (swaps && traffic.between(0, 9) == 0) {
      const bool is_own = traffic.between(0, 1) == 0;
      engine.set_draft_weights(borrowed(is_own ? model.weights : other.weights), ++draft_version);
    }
    engine.step();
    ASSERT_LE(watched.samples().num_placed(), drafts.max_running);
    totals.displaced += engine.stats().num_running > watched.samples().num_placed() ? 1 : 0;
    for (const Completion& done : engine.take_finished()) {
      ++finished;
      expect_as_alone(model, requests.at(done.id), done);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  EXPECT_EQ(finished, submitted);
  // All of it is given back.
  EXPECT_EQ(watched.samples().num_placed(), 0);
  EXPECT_EQ(watched.samples().num_tokens(), 0);
  EXPECT_EQ(watched.samples().free_slots(), in_whole_blocks(drafts).kv_slots);
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.free_slots, engine.config().kv_slots);
  totals.guessed += stats.guessed_tokens;
  totals.accepted += stats.accepted_tokens;
  totals.preemptions += stats.num_preemptions;
}

TEST(ModelDrafter, ChangesNothingUnderRandomTrafficInScarceMemory) {
  Totals totals;
  for (unsigned seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE(seed);
    run_traffic(seed, seed % 2 == 0, seed % 4 < 2, totals);
    if (::testing::Test::HasFailure()) return;
  }
  // Else the traffic did not try what it is for.
  EXPECT_GT(totals.guessed, totals.accepted + 100);
  EXPECT_GT(totals.accepted, 1000);
  EXPECT_GT(totals.preemptions, 50);
  EXPECT_GT(totals.aborted, 50);
  EXPECT_GT(totals.displaced, 100);
}

// Of the guesses of the model itself, those behind a stop token alone were computed in vain.
TEST(ModelDrafter, IsNeverWrongUnderRandomTrafficIfItIsTheModelItself) {
  static RandomModel model(16);
  int64_t guessed = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Traffic traffic(seed);
    EngineConfig config = engine_config();
    config.kv_slots = traffic.between(32, 200);
    config.max_running = traffic.between(1, 6);
    config.max_step_tokens = traffic.between(2, 24);
    EngineConfig drafts = config;
    drafts.kv_slots = traffic.between(32, 200);
    drafts.max_running = traffic.between(1, 6);
    drafts.max_step_tokens = traffic.between(1, 24);
    const Draft draft{&model.spec, &model.weights, drafts};
    const auto engine = make_engine(model.spec, model.weights, config, draft);
    for (uint64_t id = 0; id < 12; ++id) {
      GenerateRequest request = random_request(traffic, id);
      request.stop_ids.clear();
      submit_one(*engine, std::move(request));
      engine->step();
    }
    finish_all(*engine);
    EXPECT_EQ(engine->stats().accepted_tokens, engine->stats().guessed_tokens);
    guessed += engine->stats().guessed_tokens;
  }
  EXPECT_GT(guessed, 1000);
}

// Whatever was drawn instead of its guesses, and whoever had its place meanwhile.
TEST(ModelDrafter, GuessesAreThoseOfADrafterThatKnowsOnlyWhatWasDrawn) {
  static RandomModel model(16);
  int64_t compared = 0, differing = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    Traffic traffic(seed);
    EngineConfig config = engine_config();
    config.kv_slots = traffic.between(24, 120);
    config.max_running = traffic.between(1, 5);
    config.max_step_tokens = traffic.between(2, 40);
    config.block_tokens = traffic.between(1, 5);
    auto drafter = make_drafter({&model.spec, &model.weights, config});
    drafter->set_weights(borrowed(model.weights), 1);
    std::vector<GenerateRequest> requests;
    std::vector<std::vector<int32_t>> drawn(5);
    for (uint64_t id = 0; id < drawn.size(); ++id) {
      requests.push_back(random_request(traffic, id));
      drawn[id].push_back(1);
      drafter->begin(requests[id], requests[id].prompt, drawn[id]);
    }
    DraftPolicy policy(false);
    for (int round = 0; round < 12; ++round) {
      std::vector<DraftQuery> queries;
      for (uint64_t id = 0; id < drawn.size(); ++id) {
        if (traffic.between(0, 2) > 0) queries.push_back({id, traffic.between(0, 5), {}});
      }
      drafter->propose({queries, std::ssize(queries), 100}, policy);
      for (const DraftQuery& query : queries) {
        auto fresh = make_drafter({&model.spec, &model.weights, engine_config()});
        fresh->set_weights(borrowed(model.weights), 1);
        fresh->begin(requests[query.id], requests[query.id].prompt, drawn[query.id]);
        std::vector<DraftQuery> alone = {{query.id, std::ssize(query.guesses), {}}};
        fresh->propose({alone, 1, 100}, policy);
        ASSERT_EQ(alone[0].guesses.size(), query.guesses.size());
        for (size_t i = 0; i < query.guesses.size(); ++i) {
          ASSERT_EQ(alone[0].guesses[i].token, query.guesses[i].token);
          ASSERT_EQ(alone[0].guesses[i].share, query.guesses[i].share);
          ++compared;
        }
        // As many of them as come true, and another token.
        for (const DraftToken& guess : query.guesses) {
          const bool is_right = traffic.between(0, 2) > 0;
          differing += is_right ? 0 : 1;
          const int32_t token = is_right ? guess.token : (guess.token + 1) % 16;
          drawn[query.id].push_back(token);
          drafter->extend(query.id, token);
          if (!is_right || std::ssize(drawn[query.id]) > 12) break;
        }
        // Somebody else's guesses were checked meanwhile.
        while (std::ssize(drawn[query.id]) < 12 && traffic.between(0, 2) == 0) {
          drawn[query.id].push_back(static_cast<int32_t>(traffic.between(0, 15)));
          drafter->extend(query.id, drawn[query.id].back());
        }
      }
    }
  }
  EXPECT_GT(compared, 500);
  EXPECT_GT(differing, 200);
}

// Three tokens a sample, so that the second is guessed: pairs against p(a) p(b | a).
TEST(ModelDrafter, PairsFollowTheExactProbabilitiesWithTheGuessesOfAnotherModel) {
  constexpr int32_t kFew = 4;
  constexpr int kDraws = 20000;
  RandomModel model(kFew);
  RandomModel other(kFew, 5);
  const std::vector<int32_t> prompt = {3, 1, 0, 1, 2};
  const at::NoGradGuard no_grad;
  SequenceGroup group{prompt, {}};
  for (int32_t a = 0; a < kFew; ++a) {
    for (int32_t b = 0; b < kFew; ++b) group.responses.push_back({a, b});
  }
  const PackedBatch batch = pack_groups(std::span(&group, 1));
  const auto rope = make_rope_table(model.spec.config.rope, model.spec.config.head_dim, 32);
  const TapeResult exact =
      run_log_probs(model.spec, model.weights, rope, {batch}, 1.0f, ActivationType::kFloat32);
  const float* log_prob = exact.log_prob.data_ptr<float>();  // [pairs, 2]
  EngineConfig config;
  config.max_positions = 16;
  config.kv_slots = 2048;
  config.max_requests = kDraws;
  config.max_draft_tokens = 4;
  config.drafts_adapt = false;
  const auto engine =
      make_engine(model.spec, model.weights, config, {&other.spec, &other.weights, config});
  std::vector<GenerateRequest> requests;
  for (int i = 0; i < kDraws; ++i) {
    GenerateRequest request;
    request.id = static_cast<uint64_t>(i);
    request.sample_index = static_cast<uint32_t>(i);
    request.prompt = prompt;
    request.max_new_tokens = 3;
    request.seed = 11;
    requests.push_back(std::move(request));
  }
  submit_all(*engine, std::move(requests));
  std::vector<int> seen(size_t{kFew} * kFew, 0);
  for (const Completion& done : finish_all(*engine)) {
    const auto first = static_cast<size_t>(done.tokens.at(0));
    ++seen[first * kFew + static_cast<size_t>(done.tokens.at(1))];
  }
  EXPECT_GT(engine->stats().guessed_tokens, kDraws / 2);
  EXPECT_GT(engine->stats().accepted_tokens, kDraws / 20);
  EXPECT_LT(engine->stats().accepted_tokens, engine->stats().guessed_tokens * 9 / 10);
  double chi_square = 0.0;
  for (size_t pair = 0; pair < seen.size(); ++pair) {
    const double expected =
        kDraws * std::exp(static_cast<double>(log_prob[2 * pair]) + log_prob[2 * pair + 1]);
    ASSERT_GT(expected, 5.0) << "too rare for the test; choose another model seed";
    chi_square += std::pow(seen[pair] - expected, 2) / expected;
  }
  // Wilson-Hilferty at p = 1e-4 (normal quantile 3.72).
  const double d = kFew * kFew - 1;
  EXPECT_LT(chi_square, d * std::pow(1.0 - 2.0 / (9.0 * d) + 3.72 * std::sqrt(2.0 / (9.0 * d)), 3));
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(ModelDrafter, RefusesWhatDoesNotFitAndSaysWhat) {
  RandomModel model(16);
  RandomModel larger(17);
  EngineConfig config = engine_config();
  const auto engine_with = [&](const RandomModel& draft, const EngineConfig& own) {
    return Engine(model.spec, own, kSerial, ActivationType::kFloat32, nullptr,
                  make_drafter({&draft.spec, &draft.weights, engine_config()}));
  };
  EXPECT_NE(refusal([&] { engine_with(larger, config); }).find("17 tokens, the model one of 16"),
            std::string::npos);
  EngineConfig none = config;
  none.max_draft_tokens = 0;
  EXPECT_NE(refusal([&] { engine_with(model, none); }).find("max_draft_tokens"), std::string::npos);
  EngineConfig empty = config;
  empty.kv_slots = 0;
  EXPECT_NE(refusal([&] {
              make_drafter({&model.spec, &model.weights, empty});
            }).find("kv_slots"),
            std::string::npos);

  Engine without(model.spec, config, kSerial);
  EXPECT_NE(refusal([&] {
              without.set_draft_weights(borrowed(model.weights), 1);
            }).find("no draft model"),
            std::string::npos);
  Engine engine(model.spec, config, kSerial, ActivationType::kFloat32, nullptr,
                make_drafter({&model.spec, &model.weights, engine_config()}));
  EXPECT_NE(refusal([&] {
              engine.set_draft_weights(borrowed(larger.weights), 1);
            }).find("draft weights of version 1: tensor 'model.embed_tokens.weight' is [17, 32]"),
            std::string::npos);
  engine.set_draft_weights(borrowed(model.weights), 3);
  EXPECT_NE(refusal([&] {
              engine.set_draft_weights(borrowed(model.weights), 3);
            }).find("version 3 cannot follow version 3"),
            std::string::npos);
}

TEST(ModelDrafter, WithoutWeightsNothingIsGuessedAndUnsoundOnesAreNamed) {
  RandomModel model(16);
  Engine engine(model.spec, engine_config(), kSerial, ActivationType::kFloat32, nullptr,
                make_drafter({&model.spec, &model.weights, engine_config()}));
  engine.set_weights(borrowed(model.weights), 1);
  const auto request = [] {
    GenerateRequest one;
    one.prompt = {1, 2, 3};
    one.max_new_tokens = 6;
    return one;
  };
  submit_one(engine, request());
  finish_all(engine);
  EXPECT_EQ(engine.stats().guessed_tokens, 0);
  RandomModel broken(16);
  for (uint16_t& bits : broken.weights.stored(broken.spec.table.final_norm).bf16) bits = 0x7fc0;
  engine.set_draft_weights(borrowed(broken.weights), 4);
  submit_one(engine, request());
  EXPECT_NE(refusal([&] { finish_all(engine); }).find("draft weights of version 4 give request 0"),
            std::string::npos);
  // Sound ones heal it.
  engine.set_draft_weights(borrowed(model.weights), 5);
  finish_all(engine);
  EXPECT_GT(engine.stats().accepted_tokens, 0);
}

TEST(ModelDrafter, WhenItDoesNotPayOneSampleTriesNowAndThen) {
  RandomModel model(16);
  Steps steps;
  auto drafter = make_drafter({&model.spec, &model.weights, engine_config()}, &steps);
  drafter->set_weights(borrowed(model.weights), 1);
  std::vector<DraftQuery> queries;
  for (uint64_t id = 0; id < 3; ++id) {
    GenerateRequest request;
    request.id = id;
    request.sample_index = static_cast<uint32_t>(id);
    drafter->begin(request, std::vector<int32_t>{1, 2, static_cast<int32_t>(id)},
                   std::vector<int32_t>{4});
    queries.push_back({id, 5, {}});
  }
  // A draft that is dearer than the model.
  DraftPolicy policy;
  for (int i = 0; i < 20; ++i) {
    policy.observe_step(1 + i % 3, 1.0);
    policy.observe_draft(1 + i % 3, 1 + i % 3, 50.0, false);
  }
  int tried = 0;
  for (int i = 0; i < 640; ++i) {
    for (DraftQuery& query : queries) query.guesses.clear();
    drafter->propose({queries, 3, 64}, policy);
    int64_t guesses = 0;
    int samples = 0;
    for (const DraftQuery& query : queries) {
      guesses += std::ssize(query.guesses);
      samples += query.guesses.empty() ? 0 : 1;
    }
    EXPECT_LE(guesses, 4);
    EXPECT_LE(samples, 1);
    tried += samples;
    if (tried > 3) break;  // its measured times make it pay again
  }
  EXPECT_GE(tried, 1);
  EXPECT_GE(steps.count, 1);
}

TEST(ModelDrafter, TheRoomOfAStepBoundsTheGuessesOfAll) {
  RandomModel model(16);
  auto drafter = make_drafter({&model.spec, &model.weights, engine_config()});
  drafter->set_weights(borrowed(model.weights), 1);
  std::vector<DraftQuery> queries;
  for (uint64_t id = 0; id < 4; ++id) {
    GenerateRequest request;
    request.id = id;
    drafter->begin(request, std::vector<int32_t>{1, 2, static_cast<int32_t>(id)},
                   std::vector<int32_t>{4});
    queries.push_back({id, static_cast<int64_t>(id), {}});
  }
  DraftPolicy policy(false);
  for (const int64_t room : {0, 1, 3, 5, 6, 100}) {
    for (DraftQuery& query : queries) query.guesses.clear();
    drafter->propose({queries, 4, room}, policy);
    int64_t guesses = 0;
    for (const DraftQuery& query : queries) {
      EXPECT_LE(std::ssize(query.guesses), query.most);
      guesses += std::ssize(query.guesses);
    }
    EXPECT_EQ(guesses, std::min<int64_t>(room, 0 + 1 + 2 + 3));
  }
}

}  // namespace
}  // namespace nibble
