// The scheduler alone, under random traffic: a model that draws token 1 always.
#include "rollout/engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "rollout/engine/lookup_drafter.h"

namespace nibble {
namespace {

// What a cache slot holds: the hash of a token and all before it, and which weights computed it.
struct Written {
  uint64_t prefix = 0;
  int epoch = 0;
};

struct Traffic {
  explicit Traffic(unsigned seed) : random(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
  }
  std::mt19937 random;
};

uint64_t extended(uint64_t prefix, int32_t token) {
  return (prefix ^ static_cast<uint64_t>(token + 7)) * 0x9e3779b97f4a7c15ull + 1;
}

// Prompts have few beginnings, so that many begin alike.
std::vector<GenerateRequest> random_group(Traffic& traffic, uint64_t first_id, int64_t kv_slots) {
  const int64_t prompt_tokens = traffic.between(1, kv_slots / 2);
  const auto kind = static_cast<int32_t>(traffic.between(0, 1));
  std::vector<int32_t> prompt(static_cast<size_t>(prompt_tokens), kind);
  if (traffic.between(0, 2) == 0) prompt.back() = static_cast<int32_t>(traffic.between(0, 3));
  std::vector<GenerateRequest> group;
  for (int64_t i = 0; i < traffic.between(1, 5); ++i) {
    GenerateRequest request;
    request.id = first_id + static_cast<uint64_t>(i);
    request.prompt_id = first_id;
    request.prompt = prompt;
    request.max_new_tokens = traffic.between(1, kv_slots - prompt_tokens + 1);
    request.want_routes = first_id % 2 == 0;
    request.priority = static_cast<int32_t>(traffic.between(-1, 1));
    if (i == 1) request.stop_ids = {1};
    group.push_back(std::move(request));
  }
  return group;
}

// Every key a token sees is the right one, of the right weights, and nothing is written twice.
void expect_sound_keys(const StepPlan& plan, const int32_t* table, int epoch,
                       std::map<int32_t, Written>& cache) {
  std::set<int32_t> written;
  for (const StepPlan::Span& span : plan.spans) {
    std::vector<int32_t> tokens(span.group->prompt);
    bool is_stale = span.group->is_stale;
    if (span.sequence != nullptr) {
      const auto& drawn = span.sequence->completion.tokens;
      tokens.insert(tokens.end(), drawn.begin(), drawn.end());
      // Guesses behind them.
      if (span.is_decode) {
        tokens.insert(tokens.end(), plan.tokens.begin() + span.row + 1,
                      plan.tokens.begin() + span.row + span.num_tokens);
      }
      is_stale = is_stale || span.sequence->is_stale;
    }
    std::vector<uint64_t> prefix;
    for (const int32_t token : tokens) {
      prefix.push_back(extended(prefix.empty() ? 0 : prefix.back(), token));
    }
    for (int64_t row = span.row; row < span.row + span.num_tokens; ++row) {
      const auto i = static_cast<size_t>(row);
      const auto position = static_cast<size_t>(plan.position[i]);
      ASSERT_EQ(plan.tokens[i], tokens.at(position));
      ASSERT_TRUE(written.insert(plan.slot[i]).second) << "two tokens of a step in one slot";
      cache[plan.slot[i]] = {prefix.at(position), epoch};
      ASSERT_EQ(plan.count[i], plan.position[i] + 1);
      for (int32_t p = 0; p < plan.count[i]; ++p) {
        const Written& key = cache.at(table[plan.first[i] + p]);
        ASSERT_EQ(key.prefix, prefix.at(static_cast<size_t>(p)));
        ASSERT_TRUE(is_stale || key.epoch == epoch) << "of other weights";
      }
    }
  }
}

// A token's routes: one byte, which says where it lies and which weights chose them.
uint8_t route_of(int64_t position, int epoch) {
  return static_cast<uint8_t>(position | epoch % 4 << 6);
}
int64_t position_of(uint8_t route) { return route & 63; }

// As the engine does it.
void record_routes(const StepPlan& plan, int epoch) {
  for (const StepPlan::Span& span : plan.spans) {
    const bool is_prompt = span.sequence == nullptr;
    if (!(is_prompt ? span.group->want_routes : span.sequence->request.want_routes)) continue;
    auto& out = is_prompt ? span.group->routes : span.sequence->completion.routes.bytes;
    const int64_t begin = is_prompt ? span.group->computed : span.sequence->computed;
    const int64_t known = is_prompt ? span.group->routed : span.sequence->routed;
    for (int64_t t = std::max(begin, known); t < begin + span.num_kept; ++t) {
      out.push_back(route_of(plan.position[static_cast<size_t>(span.row + t - begin)], epoch));
    }
  }
}

// What a prompt found in the cache brings the routes of today's weights.
int64_t expect_routes_of_today(const StepPlan& plan, int epoch) {
  int64_t found = 0;
  for (const StepPlan::Span& span : plan.spans) {
    const Group& group = *span.group;
    if (group.has_old_routes || !group.want_routes) continue;
    for (size_t p = 0; p < group.routes.size(); ++p) {
      EXPECT_EQ(group.routes[p], route_of(static_cast<int64_t>(p), epoch));
    }
    found += group.cached;
  }
  return found;
}

void run_step(Scheduler& scheduler, StepPlan& plan, int epoch = 0) {
  int32_t number = 0;
  for (Draw& draw : plan.draws) draw.token = number++ % 7 == 6 ? 2 : 1;
  scheduler.accept(plan, 1);
  record_routes(plan, epoch);
  scheduler.commit(plan);
}

struct Totals {
  int64_t preemptions = 0, cached = 0, drawn_before = 0, guessed = 0, accepted = 0, routes = 0;
};

void run_traffic(unsigned seed, Totals& totals) {
  Traffic traffic(seed);
  EngineConfig config;
  config.block_tokens = std::vector<int64_t>{1, 2, 3, 4, 16}[static_cast<size_t>(seed % 5)];
  config.kv_slots = traffic.between(4, 60);
  config = in_whole_blocks(config);
  config.max_positions = config.kv_slots;
  config.max_running = traffic.between(1, 6);
  config.max_step_tokens = traffic.between(1, 12);
  config.max_draft_tokens = seed % 2 == 0 ? 3 : 0;
  Scheduler scheduler(
      config, 1,
      seed % 2 == 0 ? std::make_unique<LookupDrafter>(LookupDrafter::Limits{100, 3}) : nullptr);
  StepPlan plan;
  std::map<int32_t, Written> cache;
  int epoch = 0;
  uint64_t submitted = 0;
  size_t finished = 0;
  std::map<uint64_t, std::vector<int32_t>> prompts;  // by id
  for (int step = 0; step < 200 || scheduler.has_work(); ++step) {
    ASSERT_LT(step, 40000) << "no progress, seed " << seed;
    if (step < 200 && traffic.between(0, 3) == 0) {
      auto group = random_group(traffic, submitted, config.kv_slots);
      submitted += group.size();
      for (const GenerateRequest& request : group) prompts[request.id] = request.prompt;
      ASSERT_EQ(scheduler.submit(std::move(group)), SubmitOutcome::kAccepted);
    }
    if (submitted > 0 && traffic.between(0, 9) == 0) {
      scheduler.abort(
          static_cast<uint64_t>(traffic.between(0, static_cast<int64_t>(submitted) - 1)));
    }
    if (traffic.between(0, 99) == 0) scheduler.abort_started();
    if (traffic.between(0, 29) == 0) {
      if (traffic.between(0, 1) == 0) scheduler.recompute_started();
      scheduler.change_weights();
      ++epoch;
    }
    scheduler.plan(plan);
    ASSERT_LE(plan.num_tokens(), config.max_step_tokens);
    ASSERT_LE(scheduler.stats().num_running, config.max_running);
    expect_sound_keys(plan, scheduler.slot_table(), epoch, cache);
    if (epoch > 0) totals.routes += expect_routes_of_today(plan, epoch);
    if (::testing::Test::HasFailure()) return;
    run_step(scheduler, plan, epoch);
    std::vector<GenerateRequest> again;
    for (Completion& done : scheduler.take_finished()) {
      ++finished;
      ASSERT_EQ(done.tokens.size(), done.versions.size());
      if (!done.routes.bytes.empty()) {
        ASSERT_EQ(std::ssize(done.routes.bytes), done.routes.positions);
        for (size_t p = 0; p < done.routes.bytes.size(); ++p) {
          ASSERT_EQ(position_of(done.routes.bytes[p]), p);
        }
      }
      const auto& prompt = prompts.at(done.id);
      if (done.reason != FinishReason::kAborted || done.tokens.empty()) continue;
      if (std::ssize(prompt) + std::ssize(done.tokens) > config.kv_slots) continue;
      if (done.id % 2 == 1) continue;
      // What was cut short goes on later.
      totals.drawn_before += 1;
      GenerateRequest rest;
      rest.id = submitted++;
      rest.prompt = prompt;
      rest.max_new_tokens = std::ssize(done.tokens) + 1;
      rest.want_routes = !done.routes.bytes.empty();
      rest.drawn = std::move(done);
      prompts[rest.id] = rest.prompt;
      again.push_back(std::move(rest));
    }
    if (!again.empty()) {
      ASSERT_EQ(scheduler.submit(std::move(again)), SubmitOutcome::kAccepted);
    }
  }
  EXPECT_EQ(finished, submitted);
  const EngineStats stats = scheduler.stats();
  EXPECT_EQ(stats.free_slots, config.kv_slots);
  EXPECT_EQ(stats.num_waiting + stats.num_running, 0);
  scheduler.change_weights();
  EXPECT_EQ(scheduler.stats().reusable_slots, 0);
  for (int step = 0; step < 64; ++step) scheduler.plan(plan);  // which tidies up
  EXPECT_EQ(scheduler.stats().route_bytes, 0);
  EXPECT_EQ(scheduler.stats().free_slots, config.kv_slots);
  totals.preemptions += stats.num_preemptions;
  totals.cached += stats.cached_tokens;
  totals.guessed += stats.guessed_tokens;
  totals.accepted += stats.accepted_tokens;
}

TEST(Scheduler, FinishesRandomTrafficInScarceSlotsAndGivesAllBack) {
  Totals totals;
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    run_traffic(seed, totals);
    if (HasFailure()) return;
  }
  // Else the traffic did not try what it is for.
  EXPECT_GT(totals.preemptions, 100);
  EXPECT_GT(totals.cached, 100);
  EXPECT_GT(totals.drawn_before, 20);
  EXPECT_GT(totals.routes, 100);
  EXPECT_GT(totals.accepted, 1000);
  EXPECT_GT(totals.guessed, totals.accepted + 100);
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
    run_step(scheduler, plan);
  }
  EXPECT_EQ(decodes, (std::map<uint64_t, int>{{0, 4}, {1, 4}, {2, 4}, {3, 4}}));
}

TEST(Scheduler, AStreamOfPromptsDoesNotHoldUpWhoLostItsCache) {
  EngineConfig config{4, 8, 64, 64, 1000, 4};
  Scheduler scheduler(config);
  const auto submit = [&](uint64_t id, size_t prompt_tokens, int64_t most) {
    std::vector<GenerateRequest> one;
    one.emplace_back().id = id;
    one.back().prompt_id = id;
    one.back().prompt.assign(prompt_tokens, static_cast<int32_t>(id % 100));
    one.back().max_new_tokens = most;
    ASSERT_EQ(scheduler.submit(std::move(one)), SubmitOutcome::kAccepted);
  };
  StepPlan plan;
  submit(0, 2, 30);
  for (int step = 0; step < 20; ++step) {
    scheduler.plan(plan);
    run_step(scheduler, plan);
  }
  // New weights: it computes its cache anew, while prompts come as fast as they are served.
  scheduler.recompute_started();
  scheduler.change_weights();
  bool has_finished = false;
  for (uint64_t id = 1; id < 100 && !has_finished; ++id) {
    submit(id, 12, 1);
    submit(id + 1000, 12, 1);
    scheduler.plan(plan);
    run_step(scheduler, plan, 1);
    for (const Completion& done : scheduler.take_finished()) {
      has_finished = has_finished || done.id == 0;
    }
  }
  EXPECT_TRUE(has_finished) << "later prompts go before it for ever";
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
