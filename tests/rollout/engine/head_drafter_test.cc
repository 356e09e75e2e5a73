// A draft head: changes no sample, whatever it guesses and however little room it has; guesses what
// a head that sees the whole sample at once guesses, so that a wrong key, state or position would
// show; learns from what is drawn.
#include "rollout/engine/head_drafter.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <ATen/core/grad_mode.h>

#include <cstring>
#include <map>
#include <random>

#include "core/base/error.h"
#include "core/models/arena_executor.h"
#include "core/models/kv_cache.h"
#include "rollout/engine/head_trainer.h"
#include "rollout/engine/head_weights.h"
#include "rollout/engine/lookup_drafter.h"
#include "tests/core/models/oracle_model.h"
#include "tests/rollout/engine/draft_workload.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

const kernels::Serial kSerial;

EngineConfig engine_config() {
  EngineConfig config;
  config.kv_slots = 512;
  config.block_tokens = 4;
  config.max_positions = 48;
  config.max_draft_tokens = 4;
  config.drafts_adapt = false;
  return config;
}

struct Head {
  explicit Head(const ModelSpec& model, uint64_t seed = 1)
      : spec(draft_head_spec(model.config)), weights(random_head_weights(spec.table, seed)) {}
  ModelSpec spec;
  std::shared_ptr<const ResidentWeights> weights;  // shared: as an engine's
};

std::unique_ptr<HeadDrafter> make_drafter(const Head& head, const ModelSpec& model,
                                          const EngineConfig& config,
                                          HeadDrafter::Options options = {},
                                          ActivationType activations = ActivationType::kFloat32) {
  return std::make_unique<HeadDrafter>(
      head.spec, model, config,
      [&](const ModelSpec& spec, const EngineConfig& own) {
        return make_cpu_step_runner(spec, own, kSerial, activations);
      },
      options);
}

struct Beside {
  EngineConfig config = engine_config();
  HeadDrafter::Options options;
  ActivationType activations = ActivationType::kFloat32;
  bool looks_up = false;
};

// With a head; without one where it is null.
std::unique_ptr<Engine> make_engine(const ModelSpec& model, const ops::WeightSource& weights,
                                    const Head* head, Beside setup = {}) {
  if (head == nullptr) setup.config.max_draft_tokens = 0;
  auto engine = std::make_unique<Engine>(
      model, setup.config, kSerial, setup.activations,
      setup.looks_up ? std::make_unique<LookupDrafter>() : nullptr,
      head == nullptr ? nullptr
                      : make_drafter(*head, model, setup.config, setup.options, setup.activations));
  engine->set_weights(borrowed(weights), 1);
  if (head != nullptr) engine->set_draft_weights(head->weights, 1);
  return engine;
}

class HeadOracle : public ::testing::TestWithParam<std::string> {
 protected:
  OracleModel model_{GetParam()};
  Head head_{model_.spec};
};

TEST_P(HeadOracle, ChangesNoSample) {
  for (const ActivationType activations : {ActivationType::kFloat32, ActivationType::kBfloat16}) {
    for (const bool is_greedy : {false, true}) {
      Beside setup;
      setup.activations = activations;
      const auto plain = make_engine(model_.spec, *model_.weights, nullptr, setup);
      submit_all(*plain, draft_workload(model_, 20, is_greedy));
      const std::vector<Completion> want = finish_all(*plain);
      for (const int64_t window : {1, 5, 64}) {
        for (const int64_t step_tokens : {7, 256}) {
          for (const int64_t kv_slots : {40, 512}) {
            setup.options.window = window;
            setup.config.max_step_tokens = step_tokens;
            setup.config.kv_slots = kv_slots;
            setup.looks_up = window == 5;
            const auto engine = make_engine(model_.spec, *model_.weights, &head_, setup);
            submit_all(*engine, draft_workload(model_, 20, is_greedy));
            expect_same(finish_all(*engine), want,
                        fmt::format("window {} steps {} slots {}", window, step_tokens, kv_slots));
            EXPECT_GT(engine->stats().guessed_tokens, 20);
            EXPECT_EQ(engine->stats().num_preemptions > 0, kv_slots == 40);
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, HeadOracle,
                         ::testing::Values("dense_untied", "dense_tied", "moe_mixed", "llama_smol"),
                         [](const auto& param) { return param.param; });

// Of the model, float32: of all tokens, in one step.
std::vector<float> final_states(const ModelSpec& spec, const ops::WeightSource& weights,
                                const std::vector<int32_t>& tokens, std::span<const float> joined) {
  const auto count = static_cast<int64_t>(tokens.size());
  KvCache cache(spec.config, count);
  ArenaExecutor arena(spec, {count, 256}, kSerial);
  std::vector<int32_t> slots, counts;
  for (int32_t i = 0; i < count; ++i) slots.push_back(i);
  for (int32_t i = 1; i <= count; ++i) counts.push_back(i);
  const std::vector<int64_t> first(tokens.size(), 0);
  const float* states = arena.run(
      {tokens, slots, slots, {slots.data(), first.data(), counts.data()}, joined}, weights, cache);
  return {states, states + count * spec.config.hidden};
}

int32_t likeliest(const ModelSpec& spec, const ops::WeightSource& weights, const float* state) {
  const kernels::WeightView head = weights.weight(spec.table.lm_head);
  int32_t best = 0;
  double most = -1e30;
  for (int64_t row = 0; row < head.rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < head.cols; ++i) {
      sum += static_cast<double>(state[i]) * quant::bf16_to_float(head.bf16()[row * head.cols + i]);
    }
    if (sum > most) {
      most = sum;
      best = static_cast<int32_t>(row);
    }
  }
  return best;
}

// What the head guesses greedily behind `tokens` when it sees the last `window` inputs: the model's
// states, then its own. Keys and values of its one layer depend on their own input alone, so a
// window that moves on is one that is computed anew.
std::vector<int32_t> plain_guesses(const RandomModel& model, const Head& head,
                                   std::vector<int32_t> tokens, int64_t count, size_t window) {
  const HeadWeights both(head.spec, model.spec, head.weights, borrowed(model.weights));
  const auto width = static_cast<size_t>(model.spec.config.hidden);
  std::vector<float> joined = final_states(model.spec, model.weights, tokens, {});
  joined.resize(joined.size() - width);
  tokens.erase(tokens.begin());  // the first has no state before it
  std::vector<int32_t> guesses;
  for (int64_t i = 0; i < count; ++i) {
    const size_t dropped = tokens.size() - std::min(window, tokens.size());
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(dropped));
    joined.erase(joined.begin(), joined.begin() + static_cast<ptrdiff_t>(dropped * width));
    // Positions begin anew; only distances matter, to rounding.
    const std::vector<float> own = final_states(head.spec, both, tokens, joined);
    guesses.push_back(likeliest(head.spec, both, own.data() + own.size() - width));
    tokens.push_back(guesses.back());
    joined.insert(joined.end(), own.end() - static_cast<ptrdiff_t>(width), own.end());
  }
  return guesses;
}

// Records the guesses of a drafter with what was known then.
class Recorder final : public WeightedDrafter {
 public:
  struct Guess {
    std::vector<int32_t> tokens, guesses;
  };
  Recorder(std::unique_ptr<HeadDrafter> inner, std::vector<Guess>& guesses)
      : inner_(std::move(inner)), guesses_(guesses) {}
  const ModelSpec& spec() const override { return inner_->spec(); }
  void set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) override {
    inner_->set_weights(std::move(weights), version);
  }
  void release_weights() override { inner_->release_weights(); }
  void set_model_weights(std::shared_ptr<const ops::WeightSource> weights) override {
    inner_->set_model_weights(std::move(weights));
  }
  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn) override {
    tokens_[request.id].assign(prompt.begin(), prompt.end());
    tokens_[request.id].insert(tokens_[request.id].end(), drawn.begin(), drawn.end());
    inner_->begin(request, prompt, drawn);
  }
  void extend(uint64_t id, int32_t token) override {
    tokens_[id].push_back(token);
    inner_->extend(id, token);
  }
  void end(uint64_t id, bool is_whole) override { inner_->end(id, is_whole); }
  void propose(const DraftRound& round, DraftPolicy& policy) override {
    inner_->propose(round, policy);
    for (const DraftQuery& query : round.queries) {
      if (query.guesses.empty()) continue;
      Guess guess{tokens_[query.id], {}};
      for (const DraftToken& token : query.guesses) guess.guesses.push_back(token.token);
      guesses_.push_back(std::move(guess));
    }
  }
  void ask(StepPlan& plan) override { inner_->ask(plan); }
  void observe(const StepPlan& plan) override { inner_->observe(plan); }
  int64_t num_bytes() const override { return inner_->num_bytes(); }

 private:
  const std::unique_ptr<HeadDrafter> inner_;
  std::vector<Guess>& guesses_;
  std::map<uint64_t, std::vector<int32_t>> tokens_;
};

// Whatever was drawn instead of its guesses, in however small steps, stopped and computed anew.
TEST(HeadDrafter, GuessesAreThoseOfAHeadThatSeesItsWholeWindowAtOnce) {
  RandomModel model(16);
  const Head head(model.spec);
  int64_t compared = 0, differing = 0, preemptions = 0;
  for (unsigned seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    EngineConfig config = engine_config();
    config.kv_slots = 40 + static_cast<int64_t>(random() % 80);
    config.max_running = 1 + static_cast<int64_t>(random() % 5);
    config.max_step_tokens = 6 + static_cast<int64_t>(random() % 40);
    const int64_t window = seed % 2 == 0 ? 64 : 4 + seed % 3;
    std::vector<Recorder::Guess> guesses;
    Engine engine(model.spec, config, kSerial, ActivationType::kFloat32, nullptr,
                  std::make_unique<Recorder>(
                      make_drafter(head, model.spec, config, {.window = window}), guesses));
    engine.set_weights(borrowed(model.weights), 1);
    engine.set_draft_weights(head.weights, 1);
    for (uint64_t prompt = 0; prompt < 4; ++prompt) {
      std::vector<GenerateRequest> pair;
      for (uint64_t i = 0; i < 2; ++i) {
        GenerateRequest request;
        request.id = 2 * prompt + i;
        request.prompt_id = prompt;
        // They begin differently: nothing of a prompt is found in the cache.
        request.prompt = {static_cast<int32_t>(4 * prompt + seed % 4)};
        for (uint64_t t = 0; t < 3 * prompt; ++t) {
          request.prompt.push_back(static_cast<int32_t>((t + prompt) % 16));
        }
        request.max_new_tokens = 18 - static_cast<int64_t>(i);
        request.sampling.temperature = 0.0f;
        pair.push_back(std::move(request));
      }
      submit_all(engine, std::move(pair));
      engine.step();
    }
    finish_all(engine);
    for (const Recorder::Guess& guess : guesses) {
      const std::vector<int32_t> want = plain_guesses(
          model, head, guess.tokens, std::ssize(guess.guesses), static_cast<size_t>(window));
      ++compared;
      differing += want == guess.guesses ? 0 : 1;
    }
    preemptions += engine.stats().num_preemptions;
  }
  EXPECT_GT(compared, 300);
  EXPECT_GT(preemptions, 10);
  // Near ties may fall otherwise: the reference counts positions from another beginning.
  EXPECT_LE(differing, compared / 100);
}

// A model whose next token follows mostly from its last one: something that can be learned.
struct Teacher {
  Teacher() : model(16) {
    ResidentWeights& w = model.weights;
    const auto fill = [&w](int64_t p, float value) {
      for (uint16_t& bits : w.stored(p).bf16) bits = quant::float_to_bf16(value);
    };
    // Its layer adds little to the embedding.
    const ParameterTable& table = model.spec.table;
    for (uint16_t& bits : w.stored(table.layers[0].o).bf16) {
      bits = quant::float_to_bf16(0.3f * quant::bf16_to_float(bits));
    }
    for (uint16_t& bits : w.stored(table.layers[0].down).bf16) {
      bits = quant::float_to_bf16(0.3f * quant::bf16_to_float(bits));
    }
    fill(table.final_norm, 1.5f);
  }
  RandomModel model;
};

std::vector<GenerateRequest> lessons(uint64_t first, size_t count, float temperature) {
  std::vector<GenerateRequest> out;
  for (size_t i = 0; i < count; ++i) {
    GenerateRequest request;
    request.id = first + i;
    request.prompt_id = first + i;
    request.prompt = {static_cast<int32_t>(i % 16), static_cast<int32_t>(i / 16 % 16)};
    request.max_new_tokens = 40;
    request.sampling.temperature = temperature;
    request.seed = 5;
    out.push_back(std::move(request));
  }
  return out;
}

double acceptance(Engine& engine, uint64_t first, float temperature) {
  const EngineStats before = engine.stats();
  submit_all(engine, lessons(first, 48, temperature));
  finish_all(engine);
  const EngineTotals done = engine.stats().since(before);
  return static_cast<double>(done.accepted_tokens) / static_cast<double>(done.guessed_tokens);
}

TEST(HeadTrainer, TrainingOnWhatIsDrawnRaisesTheShareOfGuessesThatComeTrue) {
  const Teacher teacher;
  const Head head(teacher.model.spec);
  for (const float temperature : {0.0f, 0.7f}) {
    HeadExamples examples(32, 2048, 32);
    Beside setup;
    setup.config.max_draft_tokens = 2;
    setup.options.examples = &examples;
    const auto engine = make_engine(teacher.model.spec, teacher.model.weights, &head, setup);
    const double before = acceptance(*engine, 0, temperature);
    HeadTrainer trainer(head.spec, teacher.model.spec, *head.weights,
                        {.lr = 5e-3f, .batch_inputs = 128});
    double first_loss = 0.0, loss = 0.0;
    for (uint64_t round = 1; round <= 4; ++round) {
      for (int i = 0; i < 40; ++i) {
        loss = trainer.step(teacher.model.weights, examples).value();
        if (trainer.num_steps() == 1) first_loss = loss;
      }
      engine->set_draft_weights(trainer.weights(), 1 + static_cast<int64_t>(round));
      submit_all(*engine, lessons(1000 * round, 16, temperature));
      finish_all(*engine);
    }
    // Samples that it was not trained on.
    const double after = acceptance(*engine, 100000, temperature);
    RecordProperty(
        fmt::format("acceptance_{}", temperature),
        fmt::format("{:.3f} {:.3f} loss {:.3f} {:.3f}", before, after, first_loss, loss));
    fmt::print("temperature {}: accepted {:.3f} before, {:.3f} after; loss {:.3f}, {:.3f}\n",
               temperature, before, after, first_loss, loss);
    EXPECT_LT(loss, first_loss - 0.3);
    EXPECT_GT(after, before + 0.1);
  }
}

TEST(HeadTrainer, ChangesNoSample) {
  const Teacher teacher;
  const Head head(teacher.model.spec);
  const auto plain = make_engine(teacher.model.spec, teacher.model.weights, nullptr);
  submit_all(*plain, lessons(0, 40, 1.0f));
  const std::vector<Completion> want = finish_all(*plain);
  HeadExamples examples(32, 512, 16);
  Beside setup;
  setup.options.examples = &examples;
  const auto engine = make_engine(teacher.model.spec, teacher.model.weights, &head, setup);
  HeadTrainer trainer(head.spec, teacher.model.spec, *head.weights,
                      {.lr = 1e-2f, .batch_inputs = 64});
  submit_all(*engine, lessons(0, 40, 1.0f));
  int64_t version = 1;
  while (engine->has_work()) {
    engine->step();
    EXPECT_LE(examples.num_inputs(), examples.max_inputs());
    EXPECT_LE(examples.num_bytes(), 512 * 33 * 4 + 4 * std::ssize(examples.all()));
    if (trainer.step(teacher.model.weights, examples)) {
      engine->set_draft_weights(trainer.weights(), ++version);
    }
  }
  EXPECT_GT(version, 10);
  std::vector<Completion> done = engine->take_finished();
  std::sort(done.begin(), done.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  expect_same(done, want, "trained meanwhile");
}

TEST(HeadTrainer, TheSameExamplesGiveTheSameWeights) {
  const Teacher teacher;
  const Head head(teacher.model.spec);
  HeadExamples examples(32, 512, 16);
  Beside setup;
  setup.options.examples = &examples;
  const auto engine = make_engine(teacher.model.spec, teacher.model.weights, &head, setup);
  EXPECT_FALSE(HeadTrainer(head.spec, teacher.model.spec, *head.weights, {})
                   .step(teacher.model.weights, examples));
  submit_all(*engine, lessons(0, 8, 1.0f));
  finish_all(*engine);
  std::vector<std::unique_ptr<ResidentWeights>> got;
  for (int run = 0; run < 2; ++run) {
    HeadTrainer trainer(head.spec, teacher.model.spec, *head.weights, {});
    for (int i = 0; i < 3; ++i) trainer.step(teacher.model.weights, examples);
    got.push_back(trainer.weights());
  }
  for (int64_t p = 0; p < head.spec.table.size(); ++p) {
    const Array<uint16_t>& a = got[0]->parameters()[static_cast<size_t>(p)].bf16;
    const Array<uint16_t>& b = got[1]->parameters()[static_cast<size_t>(p)].bf16;
    const Array<uint16_t>& start = head.weights->parameters()[static_cast<size_t>(p)].bf16;
    ASSERT_EQ(a.size(), b.size());
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin()));
    EXPECT_EQ(std::equal(a.begin(), a.end(), start.begin()), is_of_model(head.spec.table, p));
  }
}

// Requests come and go, are aborted, the model's and the head's weights are swapped or missing.
TEST(HeadDrafter, ChangesNothingUnderRandomTrafficInScarceMemory) {
  RandomModel model(16);
  const Head head(model.spec), other(model.spec, 2);
  int64_t guessed = 0, preemptions = 0, aborted = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto between = [&random](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
    };
    Beside setup;
    setup.config.kv_slots = between(36, 120);
    setup.config.max_running = between(1, 6);
    setup.config.max_step_tokens = between(2, 24);
    setup.config.drafts_adapt = seed % 2 == 0;
    setup.options.window = between(1, 20);
    HeadExamples examples(32, 200, 8);
    setup.options.examples = seed % 3 == 0 ? &examples : nullptr;
    auto drafter = make_drafter(head, model.spec, setup.config, setup.options);
    const HeadDrafter& watched = *drafter;
    Engine engine(model.spec, setup.config, kSerial, ActivationType::kFloat32, nullptr,
                  std::move(drafter));
    engine.set_weights(borrowed(model.weights), 1);
    engine.set_draft_weights(head.weights, 1);
    std::map<uint64_t, std::vector<int32_t>> alone;
    uint64_t submitted = 0;
    int64_t version = 1;
    for (int step = 0; step < 60 || engine.has_work(); ++step) {
      ASSERT_LT(step, 20000) << "no progress";
      if (step < 60 && between(0, 2) == 0) {
        std::vector<GenerateRequest> group;
        const int64_t prompt_id = between(0, 2);
        for (int64_t i = 0, count = between(1, 3); i < count; ++i) {
          GenerateRequest request;
          request.id = submitted++;
          request.prompt_id = static_cast<uint64_t>(prompt_id);
          request.sample_index = static_cast<uint32_t>(i);
          for (int64_t t = 0; t < 3 + 4 * prompt_id; ++t) {
            request.prompt.push_back(static_cast<int32_t>((3 * t + prompt_id) % 16));
          }
          request.max_new_tokens = between(1, 24);
          request.sampling.temperature = i == 0 ? 0.0f : 1.0f;
          request.seed = 7;
          GenerateRequest copy;
          copy.prompt_id = request.prompt_id;
          copy.sample_index = request.sample_index;
          copy.prompt = request.prompt;
          copy.max_new_tokens = request.max_new_tokens;
          copy.sampling = request.sampling;
          copy.seed = request.seed;
          const auto plain = make_engine(model.spec, model.weights, nullptr);
          submit_one(*plain, std::move(copy));
          alone[request.id] = finish_all(*plain).at(0).tokens;
          group.push_back(std::move(request));
        }
        submit_all(engine, std::move(group));
      }
      if (submitted > 0 && between(0, 9) == 0) {
        aborted += engine.abort(random() % submitted) ? 1 : 0;
      }
      if (between(0, 9) == 0) {
        engine.set_draft_weights(between(0, 1) == 0 ? head.weights : other.weights, ++version);
      }
      if (between(0, 19) == 0) {
        // The same weights as another version: samples stay what they are.
        engine.release_weights();
        engine.set_weights(borrowed(model.weights), 1 + version,
                           between(0, 1) == 0 ? KvPolicy::kKeep : KvPolicy::kRecompute);
        ++version;
      }
      engine.step();
      ASSERT_LE(watched.samples().num_placed(), setup.config.max_running);
      ASSERT_LE(watched.samples().num_states(), watched.samples().max_states());
      ASSERT_LE(examples.num_inputs(), examples.max_inputs());
      for (const Completion& done : engine.take_finished()) {
        const std::vector<int32_t>& want = alone.at(done.id);
        ASSERT_LE(done.tokens.size(), want.size());
        ASSERT_TRUE(std::equal(done.tokens.begin(), done.tokens.end(), want.begin()));
        ASSERT_TRUE(done.reason == FinishReason::kAborted || done.tokens.size() == want.size());
      }
    }
    // All of it is given back.
    EXPECT_EQ(watched.samples().num_placed(), 0);
    EXPECT_EQ(watched.samples().num_states(), 0);
    EXPECT_EQ(watched.num_bytes(), 4 * watched.samples().table_entries());
    EXPECT_EQ(engine.stats().free_slots, engine.config().kv_slots);
    guessed += engine.stats().guessed_tokens;
    preemptions += engine.stats().num_preemptions;
  }
  EXPECT_GT(guessed, 2000);
  EXPECT_GT(preemptions, 20);
  EXPECT_GT(aborted, 20);
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(HeadDrafter, RefusesWhatDoesNotFitAndSaysWhat) {
  RandomModel model(16);
  RandomModel larger(17);
  const Head head(model.spec);
  EXPECT_NE(refusal([&] {
              make_drafter(head, larger.spec, engine_config());
            }).find("vocab_size = 16, the model 17"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              make_drafter(head, model.spec, engine_config(), {.window = 0});
            }).find("window is 0"),
            std::string::npos);
  const Head wide(larger.spec);
  auto config = RandomModel::config(16);
  config.intermediate = 64;
  const Head other(make_model_spec(config));
  auto drafter = make_drafter(head, model.spec, engine_config());
  EXPECT_NE(refusal([&] { drafter->set_weights(other.weights, 1); })
                .find("draft weights of version 1: tensor 'model.layers.0.mlp.gate_proj.weight' is "
                      "[64, 32], want [48, 32]"),
            std::string::npos);
  drafter->set_weights(head.weights, 2);
  EXPECT_NE(refusal([&] {
              drafter->set_weights(head.weights, 2);
            }).find("version 2 cannot follow version 2"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
