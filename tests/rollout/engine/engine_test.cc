#include "rollout/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <set>

#include "core/base/error.h"
#include "rollout/engine/stop_strings.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

GenerateRequest request_of(uint64_t id, std::vector<int32_t> prompt, int64_t max_new_tokens) {
  GenerateRequest request;
  request.id = id;
  request.prompt_id = 40 + static_cast<uint64_t>(prompt.size());
  request.sample_index = static_cast<uint32_t>(id);
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  request.seed = 5;
  return request;
}

class EngineTest : public ::testing::Test {
 protected:
  static EngineConfig config() { return {4, 8, 64, 32, 16, 4}; }
  void serve(int64_t version = 1) { engine_.set_weights(borrowed(model_.weights), version); }
  void submit_group(uint64_t first_id, uint64_t count, int64_t max_new_tokens) {
    std::vector<GenerateRequest> group;
    for (uint64_t i = 0; i < count; ++i) {
      group.push_back(request_of(first_id + i, {1, 2, 3, 4, 5}, max_new_tokens));
    }
    submit_all(engine_, std::move(group));
  }
  std::string refusal(const std::function<void(GenerateRequest&)>& spoil) {
    GenerateRequest request = request_of(77, {1, 2}, 4);
    spoil(request);
    try {
      submit_one(engine_, std::move(request));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "accepted";
  }

  RandomModel model_{64, 3};
  RandomModel other_{64, 4};
  kernels::Serial serial_;
  Engine engine_{model_.spec, config(), serial_};
};

TEST_F(EngineTest, GivesTheSameSampleAgainAfterOtherTraffic) {
  serve();
  submit_one(engine_, request_of(1, {9, 8, 7}, 12));
  const Completion before = finish_all(engine_).at(0);
  submit_group(10, 6, 9);
  for (int i = 0; i < 5; ++i) engine_.step();
  submit_one(engine_, request_of(1, {9, 8, 7}, 12));
  Completion after;
  for (const Completion& done : finish_all(engine_)) {
    if (done.id == 1) after = done;
  }
  EXPECT_EQ(after.tokens, before.tokens);
  EXPECT_EQ(after.log_probs, before.log_probs);
}

TEST_F(EngineTest, ASampleThatWasCutShortGoesOnFromALongerPrompt) {
  serve();
  submit_one(engine_, request_of(1, {9, 8, 7}, 12));
  const Completion whole = finish_all(engine_).at(0);
  GenerateRequest rest = request_of(1, {9, 8, 7}, 12);
  rest.prompt.insert(rest.prompt.end(), whole.tokens.begin(), whole.tokens.begin() + 5);
  rest.max_new_tokens = 7;
  submit_one(engine_, std::move(rest));
  const Completion got = finish_all(engine_).at(0);
  EXPECT_EQ(got.tokens, std::vector<int32_t>(whole.tokens.begin() + 5, whole.tokens.end()));
  EXPECT_EQ(got.log_probs, std::vector<float>(whole.log_probs.begin() + 5, whole.log_probs.end()));
}

TEST_F(EngineTest, AnotherSeedOrSampleIndexGivesAnotherSample) {
  serve();
  submit_group(1, 3, 16);
  GenerateRequest reseeded = request_of(4, {1, 2, 3, 4, 5}, 16);
  reseeded.sample_index = 1;
  reseeded.seed = 6;
  submit_one(engine_, std::move(reseeded));
  std::set<std::vector<int32_t>> samples;
  for (const Completion& done : finish_all(engine_)) samples.insert(done.tokens);
  EXPECT_EQ(samples.size(), 4u);
}

TEST_F(EngineTest, ComputesAGroupsPromptOnce) {
  serve();
  submit_group(1, 6, 3);  // six members, four lanes
  int64_t computed = 0;
  while (engine_.has_work()) computed += engine_.step();
  EXPECT_EQ(computed, 5 + 6 * 2);
}

TEST_F(EngineTest, ComputesAPromptOfAnotherCallOrIdAnew) {
  serve();
  submit_one(engine_, request_of(1, {1, 2, 3, 4, 5}, 1));
  submit_one(engine_, request_of(2, {1, 2, 3, 4, 5}, 1));
  int64_t computed = 0;
  while (engine_.has_work()) computed += engine_.step();
  EXPECT_EQ(computed, 10);
}

TEST_F(EngineTest, StopIdEndsTheSampleAndIsKept) {
  serve();
  submit_one(engine_, request_of(1, {9, 8, 7}, 12));
  const std::vector<int32_t> tokens = finish_all(engine_).at(0).tokens;
  GenerateRequest request = request_of(1, {9, 8, 7}, 12);
  request.stop_ids = {tokens[4]};
  submit_one(engine_, std::move(request));
  const Completion done = finish_all(engine_).at(0);
  const auto end = std::find(tokens.begin(), tokens.end(), tokens[4]) + 1;
  EXPECT_EQ(done.tokens, std::vector<int32_t>(tokens.begin(), end));
  EXPECT_EQ(done.reason, FinishReason::kStop);
  EXPECT_EQ(engine_.stats().free_slots, config().kv_slots);
}

// As a service with a tokenizer would: token t is the letter 'a' + t % 26.
class LetterStop : public StopCondition {
 public:
  LetterStop(std::string text, int* calls) : stop_({std::move(text)}), calls_(calls) {}
  bool ends_at(int32_t token) override {
    ++*calls_;
    return stop_.push(std::string(1, letter(token))).has_value();
  }
  static char letter(int32_t token) { return static_cast<char>('a' + token % 26); }

 private:
  StopStrings stop_;
  int* calls_;
};

TEST_F(EngineTest, StopConditionSeesEveryTokenAndKeepsTheLast) {
  serve();
  submit_one(engine_, request_of(1, {9, 8, 7}, 12));
  const std::vector<int32_t> tokens = finish_all(engine_).at(0).tokens;
  std::string text;
  for (const int32_t token : tokens) text += LetterStop::letter(token);
  const std::string stop = text.substr(3, 3);
  GenerateRequest request = request_of(1, {9, 8, 7}, 12);
  int calls = 0;
  request.stop = std::make_unique<LetterStop>(stop, &calls);
  submit_one(engine_, std::move(request));
  const Completion done = finish_all(engine_).at(0);
  EXPECT_EQ(done.tokens.size(), text.find(stop) + 3);
  EXPECT_EQ(done.reason, FinishReason::kStop);
  EXPECT_EQ(calls, std::ssize(done.tokens));
}

TEST_F(EngineTest, EveryTokenCarriesTheVersionItWasDrawnWith) {
  serve(7);
  submit_group(1, 2, 6);
  engine_.step();  // the prompt, and the first token of both
  engine_.step();
  engine_.set_weights(borrowed(other_.weights), 9, KvPolicy::kKeep);
  const std::vector<Completion> done = finish_all(engine_);
  ASSERT_EQ(done.size(), 2u);
  for (const Completion& completion : done) {
    EXPECT_EQ(completion.versions, (std::vector<int64_t>{7, 7, 9, 9, 9, 9}));
    EXPECT_EQ(completion.reason, FinishReason::kLength);
  }
}

TEST_F(EngineTest, ASwapToEqualWeightsChangesNothingButTheVersion) {
  serve(1);
  submit_group(1, 3, 8);
  const std::vector<Completion> want = finish_all(engine_);
  submit_group(1, 3, 8);
  for (int i = 0; i < 4; ++i) engine_.step();
  serve(2);
  const std::vector<Completion> got = finish_all(engine_);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].tokens, want[i].tokens);
    EXPECT_EQ(got[i].log_probs, want[i].log_probs);
    EXPECT_EQ(got[i].versions.front(), 1);
    EXPECT_EQ(got[i].versions.back(), 2);
  }
}

TEST_F(EngineTest, ASwapChangesTheLogProbsOfLaterTokens) {
  serve(1);
  submit_group(1, 1, 8);
  const Completion want = finish_all(engine_).at(0);
  submit_group(1, 1, 8);
  engine_.step();
  engine_.set_weights(borrowed(other_.weights), 2);
  const Completion got = finish_all(engine_).at(0);
  EXPECT_EQ(got.log_probs[0], want.log_probs[0]);
  EXPECT_NE(got.log_probs[1], want.log_probs[1]);
}

TEST_F(EngineTest, AbortPolicyEndsWhatHasStartedAndKeepsWhatHasNot) {
  serve(1);
  submit_group(1, 5, 6);                                // four lanes: the fifth waits
  submit_one(engine_, request_of(9, {3, 3, 3, 3}, 3));  // not started
  engine_.step();
  engine_.step();
  engine_.set_weights(borrowed(model_.weights), 2, KvPolicy::kAbort);
  const std::vector<Completion> aborted = engine_.take_finished();
  ASSERT_EQ(aborted.size(), 5u);
  for (const Completion& done : aborted) {
    EXPECT_EQ(done.reason, FinishReason::kAborted);
    EXPECT_EQ(done.tokens.size(), done.id == 5 ? 1u : 2u);
    EXPECT_THAT(done.versions, Each(1));
  }
  EXPECT_EQ(engine_.stats().free_slots, config().kv_slots);
  const std::vector<Completion> rest = finish_all(engine_);
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].id, 9u);
  EXPECT_THAT(rest[0].versions, Each(2));
}

TEST_F(EngineTest, RecomputePolicyGoesOnAsIfTheNewWeightsHadComputedWhatThereIs) {
  for (const int steps_before : {1, 2, 5}) {
    serve(3 * steps_before);
    submit_group(1, 6, 8);  // four lanes: two wait with their first token
    for (int i = 0; i < steps_before; ++i) engine_.step();
    engine_.set_weights(borrowed(other_.weights), 3 * steps_before + 1, KvPolicy::kRecompute);
    const std::vector<Completion> done = finish_all(engine_);
    ASSERT_EQ(done.size(), 6u);
    // An engine that has the new weights only, asked to go on from the tokens drawn before.
    Engine fresh(model_.spec, config(), serial_);
    fresh.set_weights(borrowed(other_.weights), 1);
    for (const Completion& completion : done) {
      const auto kept =
          std::count(completion.versions.begin(), completion.versions.end(), 3 * steps_before);
      ASSERT_GE(kept, 1);
      ASSERT_LT(kept, 8);
      GenerateRequest rest = request_of(completion.id, {1, 2, 3, 4, 5}, 8 - kept);
      rest.prompt_id = 45;  // names the draws
      rest.prompt.insert(rest.prompt.end(), completion.tokens.begin(),
                         completion.tokens.begin() + kept);
      submit_one(fresh, std::move(rest));
      const Completion want = finish_all(fresh).at(0);
      EXPECT_EQ(std::vector(completion.tokens.begin() + kept, completion.tokens.end()),
                want.tokens);
      EXPECT_EQ(std::vector(completion.log_probs.begin() + kept, completion.log_probs.end()),
                want.log_probs);
    }
    EXPECT_EQ(engine_.stats().free_slots, config().kv_slots);
  }
}

TEST_F(EngineTest, APausedEngineStandsStillAndGoesOnAsIfNothingHadBeen) {
  serve();
  for (int steps = 0; steps < 12; ++steps) {
    submit_group(11, 3, 12);
    for (int i = 0; i < steps; ++i) engine_.step();
    const EngineStats before = engine_.stats();
    engine_.pause();
    engine_.pause();
    EXPECT_TRUE(engine_.is_paused());
    EXPECT_TRUE(engine_.has_work());
    EXPECT_EQ(engine_.step(), 0);
    EXPECT_EQ(engine_.stats().decoded_tokens, before.decoded_tokens);
    EXPECT_EQ(engine_.stats().num_running, before.num_running);
    EXPECT_EQ(engine_.stats().free_slots, before.free_slots);
    submit_one(engine_, request_of(20, {9, 8}, 3));
    EXPECT_EQ(engine_.step(), 0) << "a new request waits as well";
    engine_.resume();
    std::vector<Completion> got = finish_all(engine_);
    ASSERT_EQ(got.size(), 4u);
    // Draws depend on the sample, not on the id.
    for (size_t i = 0; i < 3; ++i) {
      GenerateRequest again = request_of(11 + i, {1, 2, 3, 4, 5}, 12);
      submit_one(engine_, std::move(again));
      const Completion alone = finish_all(engine_).at(0);
      EXPECT_EQ(got[i].tokens, alone.tokens);
      EXPECT_EQ(got[i].log_probs, alone.log_probs);
    }
  }
}

TEST_F(EngineTest, WeightsMayBeSwappedWhileItIsPaused) {
  serve();
  submit_group(1, 2, 8);
  engine_.step();
  engine_.step();
  engine_.pause();
  engine_.set_weights(borrowed(other_.weights), 2);
  EXPECT_EQ(engine_.step(), 0);
  EXPECT_TRUE(engine_.abort(2));
  engine_.resume();
  const std::vector<Completion> done = finish_all(engine_);
  ASSERT_EQ(done.size(), 2u);
  EXPECT_EQ(done[1].reason, FinishReason::kAborted);
  EXPECT_EQ(done[0].versions.front(), 1);
  EXPECT_EQ(done[0].versions.back(), 2);
  EXPECT_TRUE(std::is_sorted(done[0].versions.begin(), done[0].versions.end()));
}

TEST_F(EngineTest, WithoutWeightsItWaitsAndGoesOnWithTheSameVersion) {
  serve(4);
  submit_group(1, 3, 8);
  const std::vector<Completion> want = finish_all(engine_);
  submit_group(1, 3, 8);
  engine_.step();
  engine_.step();
  engine_.release_weights();
  EXPECT_FALSE(engine_.has_weights());
  EXPECT_THROW(engine_.step(), Error);
  EXPECT_THROW(serve(3), Error);
  serve(4);
  const std::vector<Completion> got = finish_all(engine_);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].log_probs, want[i].log_probs);
}

TEST_F(EngineTest, AbortInAnyStateFreesSlotsAndLeavesOthersAlone) {
  serve();
  submit_group(1, 6, 6);
  const std::vector<Completion> want = finish_all(engine_);
  // Before the prompt, inside it, after it, while decoding; a running, the last, a waiting member.
  for (const int steps : {0, 1, 2, 5}) {
    for (const uint64_t victim : {1, 4, 6}) {
      Engine small(model_.spec, {4, 3, 64, 32, 16, 4}, serial_);
      small.set_weights(borrowed(model_.weights), 1);
      std::vector<GenerateRequest> group;
      for (uint64_t id = 1; id <= 6; ++id) group.push_back(request_of(id, {1, 2, 3, 4, 5}, 6));
      submit_all(small, std::move(group));
      for (int i = 0; i < steps; ++i) small.step();
      EXPECT_TRUE(small.abort(victim));
      EXPECT_FALSE(small.abort(victim));
      const std::vector<Completion> got = finish_all(small);
      ASSERT_EQ(got.size(), 6u);
      for (size_t i = 0; i < got.size(); ++i) {
        if (got[i].id == victim) {
          EXPECT_EQ(got[i].reason, FinishReason::kAborted);
          EXPECT_LT(got[i].tokens.size(), 6u);
        } else {
          EXPECT_EQ(got[i].tokens, want[i].tokens);
          EXPECT_EQ(got[i].log_probs, want[i].log_probs);
        }
      }
      EXPECT_EQ(small.stats().free_slots, 64);
    }
  }
}

TEST_F(EngineTest, RequestsAreBoundedFromSubmitUntilTaken) {
  serve();
  submit_group(1, 16, 2);
  std::vector<GenerateRequest> one;
  one.push_back(request_of(100, {1}, 1));
  EXPECT_EQ(engine_.submit(std::move(one)), SubmitOutcome::kQueueFull);
  while (engine_.has_work()) engine_.step();
  std::vector<GenerateRequest> again;
  again.push_back(request_of(100, {1}, 1));
  EXPECT_EQ(engine_.submit(std::move(again)), SubmitOutcome::kQueueFull) << "none was taken";
  EXPECT_EQ(engine_.take_finished().size(), 16u);
  submit_one(engine_, request_of(100, {1}, 1));
  EXPECT_EQ(finish_all(engine_).size(), 1u);
}

TEST_F(EngineTest, RefusesRequestsThatCannotBeServedNamingThem) {
  EXPECT_THAT(refusal([](auto& r) { r.prompt.clear(); }), HasSubstr("request 77: the prompt"));
  EXPECT_THAT(refusal([](auto& r) { r.prompt[1] = 64; }), HasSubstr("token id 64"));
  EXPECT_THAT(refusal([](auto& r) { r.stop_ids = {-1}; }), HasSubstr("stop_ids"));
  EXPECT_THAT(refusal([](auto& r) { r.max_new_tokens = 0; }), HasSubstr("max_new_tokens 0"));
  EXPECT_THAT(refusal([](auto& r) { r.max_new_tokens = 32; }), HasSubstr("do not fit"));
  EXPECT_THAT(refusal([](auto& r) { r.max_new_tokens = std::numeric_limits<int64_t>::max(); }),
              HasSubstr("do not fit"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.temperature = -1.0f; }), HasSubstr("temperature"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.temperature = std::nanf(""); }),
              HasSubstr("temperature"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.top_p = 0.0f; }), HasSubstr("top_p"));
  EXPECT_EQ(refusal([](auto& r) { r.max_new_tokens = 31; }), "accepted");
  EXPECT_THAT(refusal([](auto&) {}), HasSubstr("id is in use"));
  EXPECT_EQ(engine_.stats().num_waiting, 1);
}

TEST_F(EngineTest, NeedsWeightsAndOnlyTakesNewerFittingOnes) {
  submit_one(engine_, request_of(1, {1}, 1));
  EXPECT_THROW(engine_.step(), Error);
  serve(3);
  EXPECT_THROW(serve(3), Error);
  const RandomModel wide(48);
  try {
    engine_.set_weights(borrowed(wide.weights), 4);
    FAIL() << "another vocabulary was accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("embed_tokens"));
  }
  EXPECT_EQ(engine_.version(), 3);
  EXPECT_EQ(finish_all(engine_).at(0).versions, std::vector<int64_t>{3});
}

TEST_F(EngineTest, AStepWithBrokenWeightsFailsAndCanBeTakenAgain) {
  serve(1);
  submit_group(1, 2, 5);
  const std::vector<Completion> want = finish_all(engine_);
  submit_group(1, 2, 5);
  engine_.step();
  std::fill(other_.weights.stored(other_.spec.table.final_norm).bf16.begin(),
            other_.weights.stored(other_.spec.table.final_norm).bf16.end(), uint16_t{0x7fc0});
  engine_.set_weights(borrowed(other_.weights), 2);
  EXPECT_THROW(engine_.step(), Error);
  EXPECT_THROW(engine_.step(), Error);
  serve(3);
  const std::vector<Completion> got = finish_all(engine_);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].tokens, want[i].tokens);
    EXPECT_EQ(got[i].log_probs, want[i].log_probs);
    EXPECT_EQ(got[i].versions, (std::vector<int64_t>{1, 3, 3, 3, 3}));
  }
}

TEST(EngineConfig, RefusesSizesItDoesNotHave) {
  const RandomModel model(16);
  const kernels::Serial serial;
  EXPECT_THROW(Engine(model.spec, {0, 8, 64, 32, 16, 4}, serial), Error);
  EXPECT_THROW(Engine(model.spec, {4, 8, int64_t{1} << 40, 32, 16, 4}, serial), Error);
}

}  // namespace
}  // namespace nibble
