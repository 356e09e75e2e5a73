// The scheduler alone, under random traffic: a model that draws token 1 always.
#include "rollout/engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace nibble {
namespace {

// What a cache slot holds: whose token at which position.
struct Written {
  const Group* group;
  const Sequence* sequence;
  int32_t position;
};

struct Traffic {
  explicit Traffic(unsigned seed) : random(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  }
  std::mt19937 random;
};

std::vector<GenerateRequest> random_group(Traffic& traffic, uint64_t first_id, int64_t kv_slots) {
  const int64_t prompt_tokens = traffic.between(1, kv_slots / 2);
  std::vector<GenerateRequest> group;
  for (int64_t i = 0; i < traffic.between(1, 5); ++i) {
    GenerateRequest request;
    request.id = first_id + static_cast<uint64_t>(i);
    request.prompt_id = first_id;
    request.prompt.assign(static_cast<size_t>(prompt_tokens), 3);
    request.max_new_tokens = traffic.between(1, kv_slots - prompt_tokens + 1);
    if (i == 1) request.stop_ids = {1};
    group.push_back(std::move(request));
  }
  return group;
}

// Every key a token sees is the right one, and nothing is written over while it is needed.
void expect_sound_keys(const StepPlan& plan, const int32_t* table,
                       std::map<int32_t, Written>& cache) {
  std::set<int32_t> written;
  for (const StepPlan::Span& span : plan.spans) {
    for (int64_t row = span.row; row < span.row + span.num_tokens; ++row) {
      const auto i = static_cast<size_t>(row);
      ASSERT_TRUE(written.insert(plan.slot[i]).second) << "two tokens of a step in one slot";
      cache[plan.slot[i]] = {span.group, span.sequence, plan.position[i]};
      ASSERT_EQ(plan.count[i], plan.position[i] + 1);
      for (int32_t p = 0; p < plan.count[i]; ++p) {
        const Written& key = cache.at(table[plan.first[i] + p]);
        ASSERT_EQ(key.group, span.group);
        ASSERT_EQ(key.position, p);
        const bool is_prompt = p < span.group->prompt_tokens();
        ASSERT_EQ(key.sequence, is_prompt ? nullptr : span.sequence);
      }
    }
  }
}

TEST(Scheduler, FinishesRandomTrafficInScarceSlotsAndGivesAllBack) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Traffic traffic(seed);
    EngineConfig config;
    config.kv_slots = traffic.between(4, 40);
    config.max_positions = config.kv_slots;
    config.max_running = traffic.between(1, 6);
    config.max_step_tokens = traffic.between(1, 12);
    Scheduler scheduler(config);
    StepPlan plan;
    std::map<int32_t, Written> cache;
    uint64_t submitted = 0;
    size_t finished = 0;
    for (int step = 0; step < 200 || scheduler.has_work(); ++step) {
      ASSERT_LT(step, 20000) << "no progress, seed " << seed;
      if (step < 200 && traffic.between(0, 3) == 0) {
        auto group = random_group(traffic, submitted, config.kv_slots);
        submitted += group.size();
        ASSERT_EQ(scheduler.submit(std::move(group)), SubmitOutcome::kAccepted);
      }
      if (submitted > 0 && traffic.between(0, 9) == 0) {
        scheduler.abort(
            static_cast<uint64_t>(traffic.between(0, static_cast<int64_t>(submitted) - 1)));
      }
      if (traffic.between(0, 99) == 0) scheduler.abort_started();
      if (traffic.between(0, 29) == 0) {
        scheduler.recompute_started();
        cache.clear();  // what was written is of no use any more
      }
      scheduler.plan(plan);
      ASSERT_LE(plan.num_tokens(), config.max_step_tokens);
      ASSERT_LE(scheduler.stats().num_running, config.max_running);
      expect_sound_keys(plan, scheduler.slot_table(), cache);
      for (Draw& draw : plan.draws) draw.token = 1;
      scheduler.commit(plan, 1);
      for (const Completion& done : scheduler.take_finished()) {
        ++finished;
        ASSERT_EQ(done.tokens.size(), done.versions.size());
      }
    }
    EXPECT_EQ(finished, submitted);
    EXPECT_EQ(scheduler.stats().free_slots, config.kv_slots);
    EXPECT_EQ(scheduler.stats().num_waiting + scheduler.stats().num_running, 0);
  }
}

TEST(Scheduler, AStepTooSmallForAllDecodesServesThemInTurn) {
  EngineConfig config{4, 2, 64, 16, 16, 4};
  Scheduler scheduler(config);
  std::vector<GenerateRequest> group;
  for (uint64_t id = 0; id < 4; ++id) {
    GenerateRequest request;
    request.id = id;
    request.prompt = {1, 2};
    request.max_new_tokens = 9;
    group.push_back(std::move(request));
  }
  ASSERT_EQ(scheduler.submit(std::move(group)), SubmitOutcome::kAccepted);
  StepPlan plan;
  std::map<uint64_t, int> decodes;
  for (int step = 0; step < 9; ++step) {
    scheduler.plan(plan);
    for (const StepPlan::Span& span : plan.spans) {
      if (span.sequence != nullptr) ++decodes[span.sequence->request.id];
    }
    for (Draw& draw : plan.draws) draw.token = 1;
    scheduler.commit(plan, 1);
  }
  EXPECT_EQ(decodes, (std::map<uint64_t, int>{{0, 4}, {1, 4}, {2, 4}, {3, 4}}));
}

TEST(Scheduler, APlanThatWasNotCommittedIsMadeAgain) {
  EngineConfig config{4, 8, 64, 16, 16, 4};
  Scheduler scheduler(config);
  std::vector<GenerateRequest> one;
  one.emplace_back().prompt = {1, 2, 3};
  one.back().max_new_tokens = 2;
  ASSERT_EQ(scheduler.submit(std::move(one)), SubmitOutcome::kAccepted);
  StepPlan first;
  StepPlan second;
  scheduler.plan(first);
  scheduler.plan(second);
  EXPECT_EQ(first.tokens, second.tokens);
  EXPECT_EQ(first.slot, second.slot);
  EXPECT_EQ(first.draws.size(), second.draws.size());
}

}  // namespace
}  // namespace nibble
