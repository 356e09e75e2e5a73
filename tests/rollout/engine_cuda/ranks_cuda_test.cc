// An engine of several NCCL ranks, processes that share the GPU, against one rank alone: the same
// bits in `exact`, with CUDA graphs and without, across a swap of weights.
#include <cstring>

#include "core/base/fail.h"
#include "core/comm_cuda/nccl_group.h"
#include "core/spec/mesh.h"
#include "rollout/engine/rank_follower.h"
#include "rollout/engine/rank_leader.h"
#include "rollout/engine_cuda/cuda_step_runner.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/core/models_cuda/gpu_backend.h"
#include "tests/rollout/engine/engine_fixture.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

EngineConfig config_of(const Mesh& mesh) {
  EngineConfig config;
  config.max_step_tokens = 24;
  config.max_running = 6;
  config.kv_slots = 96;
  config.max_positions = 40;
  config.max_logit_rows = 8;
  config.mesh = mesh;
  return config;
}

std::vector<GenerateRequest> workload(const OracleModel& model) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  std::vector<GenerateRequest> out;
  for (uint64_t i = 0; i < 9; ++i) {
    GenerateRequest request;
    request.id = i;
    request.prompt_id = i / 3;
    request.sample_index = static_cast<uint32_t>(i % 3);
    const auto begin = static_cast<ptrdiff_t>(i / 3);
    request.prompt.assign(text.begin() + begin, text.begin() + begin + 11);
    request.max_new_tokens = 8 + static_cast<int64_t>(i);
    request.seed = 5;
    request.want_routes = true;
    out.push_back(std::move(request));
  }
  return out;
}

std::vector<Completion> run(Engine& engine, const OracleModel& model,
                            const std::shared_ptr<const ops::WeightSource>& weights) {
  engine.set_weights(weights, 1);
  submit_all(engine, workload(model));
  for (int step = 0; step < 5; ++step) engine.step();
  engine.set_weights(weights, 2, KvPolicy::kRecompute);
  return finish_all(engine);
}

void require_same(const std::vector<Completion>& got, const std::vector<Completion>& want) {
  NIBBLE_CHECK(got.size() == want.size(), "{} samples", got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    NIBBLE_CHECK(got[i].tokens == want[i].tokens, "other tokens in sample {}", i);
    NIBBLE_CHECK(got[i].routes.bytes == want[i].routes.bytes, "other routes in sample {}", i);
    NIBBLE_CHECK(std::memcmp(got[i].log_probs.data(), want[i].log_probs.data(),
                             got[i].log_probs.size() * sizeof(float)) == 0,
                 "other log-probabilities in sample {}", i);
  }
}

struct World {
  int ranks;
  bool splits_experts;
  std::vector<int64_t> graphs;
};

void run_rank(const std::string& name, const std::string& variant, const World& world, int port,
              int rank) {
  share_gpu_between_nccl_ranks(rank);
  NIBBLE_CHECK(use_gpu(), "no GPU");
  std::unique_ptr<RendezvousServer> server;
  if (rank == 0) server = std::make_unique<RendezvousServer>(port);
  const auto control = join_gloo_group({"127.0.0.1", port, "control", 60s}, rank, world.ranks);
  const auto group = join_nccl_group({"127.0.0.1", port, "steps", 60s}, rank, world.ranks);
  const StepRanks ranks{group.get(), world.splits_experts};
  GpuModel gpu(name, variant, Numerics::kExact);
  const ParameterTable held = rank_table(gpu.host.spec.table, ranks.mesh(), rank);
  const std::shared_ptr<const ResidentWeights> part =
      rank_weights(*gpu.host.weights, gpu.host.spec.table, held, ranks.mesh(), rank)
          ->to(DeviceKind::kCuda);
  const auto factory = [&](std::vector<int64_t> graphs) {
    return cuda_step_runner(*gpu.backend, {Numerics::kExact, std::move(graphs), ranks});
  };
  if (rank > 0) {
    follow_leader(*control, {[&](const RunnerSizes& sizes) {
                               return factory(sizes.graph_batches)(gpu.host.spec, sizes.config);
                             },
                             [&](int64_t) { return part; }});
    return;
  }
  Engine alone(gpu.host.spec, config_of({}),
               cuda_step_runner(*gpu.backend, {Numerics::kExact, world.graphs}));
  const auto want = run(alone, gpu.host, borrowed(*gpu.weights));
  RankLeader leader(*control);
  Engine engine(gpu.host.spec, config_of(ranks.mesh()),
                leader.factory(factory(world.graphs), world.graphs));
  require_same(run(engine, gpu.host, part), want);
}

class EngineRanksCuda : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(EngineRanksCuda, SamplesAreThoseOfOneRankToTheBit) {
  const auto& [name, variant] = GetParam();
  const bool has_gpu = run_ranks(1, 60s, [](int) {
                         if (!use_gpu()) throw std::runtime_error("no GPU");
                       }) == 1;
  if (!has_gpu) GTEST_SKIP() << "no GPU on this machine";
  const OracleModel model(name, variant);
  for (const World& world : {World{2, false, {}}, World{2, false, {1, 2, 4, 8}}, World{2, true, {}},
                             World{2, true, {1, 2, 4, 8}}}) {
    const Mesh mesh{world.ranks, world.ranks, world.splits_experts ? world.ranks : 1};
    if (mesh_problem(model.spec.config, mesh)) continue;
    const int port = free_port();
    EXPECT_EQ(
        run_ranks(world.ranks, 120s, [&](int rank) { run_rank(name, variant, world, port, rank); }),
        world.ranks)
        << "experts split: " << world.splits_experts << ", graphs: " << world.graphs.size();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, EngineRanksCuda,
    ::testing::Combine(::testing::Values("dense_untied", "moe_norm", "moe_mixed"),
                       ::testing::Values("bf16", "int4_sym7")),
    [](const auto& param) { return std::get<0>(param.param) + "_" + std::get<1>(param.param); });

}  // namespace
}  // namespace nibble
