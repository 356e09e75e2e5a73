// An engine of several ranks against one alone, to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/base/error.h"
#include "core/comm/process_group.h"
#include "core/spec/mesh.h"
#include "rollout/engine/rank_follower.h"
#include "rollout/engine/rank_leader.h"
#include "tests/core/models/oracle_model.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

EngineConfig config_of(const Mesh& mesh, int64_t draft_tokens) {
  EngineConfig config;
  config.max_step_tokens = 7;
  config.max_running = 3;
  config.kv_slots = 48;
  config.block_tokens = 4;
  config.max_positions = 32;
  config.max_logit_rows = 3;
  config.max_draft_tokens = draft_tokens;
  config.drafts_adapt = false;
  config.mesh = mesh;
  return config;
}

std::vector<GenerateRequest> workload(const OracleModel& model) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  std::vector<GenerateRequest> out;
  for (uint64_t i = 0; i < 7; ++i) {
    GenerateRequest request;
    request.id = i;
    request.prompt_id = i / 3;
    request.sample_index = static_cast<uint32_t>(i % 3);
    const auto begin = static_cast<ptrdiff_t>(i / 3);
    request.prompt.assign(text.begin() + begin, text.begin() + begin + 9);
    request.max_new_tokens = 6 + static_cast<int64_t>(i);
    request.sampling.temperature = i % 3 == 2 ? 0.0f : 1.0f;
    request.seed = 5;
    request.want_routes = true;
    request.want_plain_log_probs = true;
    out.push_back(std::move(request));
  }
  return out;
}

// With a swap to `other` on the way.
std::vector<Completion> run(Engine& engine, const OracleModel& model,
                            std::shared_ptr<const ops::WeightSource> first,
                            std::shared_ptr<const ops::WeightSource> second) {
  engine.set_weights(std::move(first), 1);
  submit_all(engine, workload(model));
  for (int step = 0; step < 6; ++step) engine.step();
  engine.set_weights(std::move(second), 2, KvPolicy::kRecompute);
  return finish_all(engine);
}

void expect_same(const std::vector<Completion>& got, const std::vector<Completion>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].tokens, want[i].tokens) << "request " << i;
    ASSERT_EQ(got[i].versions, want[i].versions);
    ASSERT_EQ(got[i].routes.bytes, want[i].routes.bytes);
    const size_t bytes = got[i].log_probs.size() * sizeof(float);
    ASSERT_EQ(std::memcmp(got[i].log_probs.data(), want[i].log_probs.data(), bytes), 0);
    ASSERT_EQ(std::memcmp(got[i].plain_log_probs.data(), want[i].plain_log_probs.data(), bytes), 0);
  }
}

// Weights of the second version: another order of the final norm's values.
std::unique_ptr<ResidentWeights> changed(const OracleModel& model) {
  auto other = std::make_unique<ResidentWeights>(model.spec.table, model.weights->plan());
  for (int64_t p = 0; p < model.spec.table.size(); ++p) {
    other->stored(p) = std::as_const(*model.weights).stored(p);
  }
  auto& norm = other->stored(model.spec.table.final_norm).bf16;
  std::reverse(norm.begin(), norm.end());
  return other;
}

/// One rank of an engine, in a thread of its own.
class Rank {
 public:
  Rank(const OracleModel& model, const ResidentWeights& other, StepRanks ranks)
      : model_(model),
        ranks_(ranks),
        held_(rank_table(model.spec.table, ranks.mesh(), ranks.rank())),
        weights_{part(*model.weights), part(other)} {}

  std::unique_ptr<StepRunner> make_runner(const EngineConfig& config) const {
    return make_cpu_step_runner(model_.spec, config, serial_, ActivationType::kFloat32, ranks_);
  }
  std::shared_ptr<const ops::WeightSource> weights(int64_t version) const {
    return weights_[static_cast<size_t>(version - 1)];
  }
  void follow(ProcessGroup& control) const {
    follow_leader(control, {[this](const RunnerSizes& sizes) { return make_runner(sizes.config); },
                            [this](int64_t version) { return weights(version); }});
  }

 private:
  std::shared_ptr<const ops::WeightSource> part(const ResidentWeights& whole) const {
    return rank_weights(whole, model_.spec.table, held_, ranks_.mesh(), ranks_.rank());
  }
  const OracleModel& model_;
  const StepRanks ranks_;
  const ParameterTable held_;
  const kernels::Serial serial_;
  const std::vector<std::shared_ptr<const ops::WeightSource>> weights_;
};

struct World {
  int ranks;
  bool splits_experts;
  int64_t draft_tokens;
};

std::vector<Completion> run_on_ranks(const OracleModel& model, const ResidentWeights& other,
                                     const World& world) {
  const RendezvousServer server;
  const auto join = [&](const char* name, int rank) {
    return join_gloo_group({"127.0.0.1", server.port(), name, 30s}, rank, world.ranks);
  };
  std::vector<std::jthread> followers;
  for (int r = 1; r < world.ranks; ++r) {
    followers.emplace_back([&, r] {
      const auto control = join("control", r);
      const auto group = join("steps", r);
      Rank(model, other, {group.get(), world.splits_experts}).follow(*control);
    });
  }
  const auto control = join("control", 0);
  const auto group = join("steps", 0);
  const StepRanks ranks{group.get(), world.splits_experts};
  const Rank own(model, other, ranks);
  RankLeader leader(*control);
  const auto make_own = [&](const ModelSpec&, const EngineConfig& config) {
    return own.make_runner(config);
  };
  Engine engine(model.spec, config_of(ranks.mesh(), world.draft_tokens),
                leader.factory(make_own, {}));
  return run(engine, model, own.weights(1), own.weights(2));
}

class EngineRanks : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(EngineRanks, SamplesAreThoseOfOneRankToTheBit) {
  const OracleModel model(std::get<0>(GetParam()), std::get<1>(GetParam()));
  const auto other = changed(model);
  const kernels::Serial serial;
  int tried = 0;
  for (const World& world : {World{2, false, 0}, World{2, true, 0}, World{2, false, 3},
                             World{2, true, 3}, World{3, false, 0}, World{4, true, 0}}) {
    const Mesh mesh{world.ranks, world.ranks, world.splits_experts ? world.ranks : 1};
    if (mesh_problem(model.spec.config, mesh)) continue;
    ++tried;
    Engine alone(model.spec, config_of({}, world.draft_tokens), serial);
    expect_same(run_on_ranks(model, *other, world),
                run(alone, model, borrowed(*model.weights), borrowed(*other)));
  }
  EXPECT_EQ(tried > 0, model.spec.config.num_kv_heads > 1) << model.name;
}

INSTANTIATE_TEST_SUITE_P(Models, EngineRanks,
                         ::testing::Combine(::testing::ValuesIn(oracle_names()),
                                            ::testing::Values("bf16", "int4_sym7")),
                         [](const auto& param) {
                           return std::get<0>(param.param) + "_" + std::get<1>(param.param);
                         });

TEST(RankOrders, ForeignBytesAreRefused) {
  StepPlan plan;
  plan.tokens = {1, 2};
  plan.position = {0, 1};
  plan.slot = {4, 5};
  plan.first = {0, 0};
  plan.count = {1, 2};
  plan.draws.resize(1);
  plan.draws[0].row = 1;
  const std::vector<std::pair<int64_t, int32_t>> changes = {{0, 4}, {1, 5}};
  const std::vector<std::byte> bytes = encode_step(plan, changes);
  StepOrder order;
  decode_step(bytes, order);
  EXPECT_EQ(order.plan.tokens, plan.tokens);
  EXPECT_EQ(order.plan.first, plan.first);
  EXPECT_EQ(order.plan.draws[0].row, 1);
  EXPECT_EQ(order.slot_changes, changes);
  for (size_t end = 0; end < bytes.size(); ++end) {
    EXPECT_THROW(decode_step(std::span(bytes).first(end), order), Error) << end;
  }
  std::vector<std::byte> more = bytes;
  more.push_back(std::byte{0});
  EXPECT_THROW(decode_step(more, order), Error);
  more = bytes;
  more[7] = std::byte{0x7f};  // a count beyond all bytes
  EXPECT_THROW(decode_step(more, order), Error);
}

TEST(RankFollower, NoticesThatTheLeaderIsGone) {
  const RendezvousServer server;
  const auto join = [&](int rank) {
    return join_gloo_group({"127.0.0.1", server.port(), "control", 30s}, rank, 2);
  };
  std::jthread follower([&] {
    const auto control = join(1);
    EXPECT_THROW(follow_leader(*control, {}), Error);
  });
  join(0).reset();
}

}  // namespace
}  // namespace nibble
