#include "cli/sync_bench.h"

#include <algorithm>

#include "cli/forked_ranks.h"
#include "cli/host_probe.h"
#include "cli/sync_bench_world.h"
#include "core/base/fail.h"
#include "core/spec/mesh.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int64_t kLeastBytesPerMs = 20'000;  // 20 MB/s

void check_mesh(const PlannedModel& model, const char* flag, const Mesh& mesh) {
  if (const auto problem = mesh_problem(model.config, mesh)) {
    fail(ErrorCode::kInvalidArgument, "{}: its ranks cannot share this model: {}", flag, *problem);
  }
}

// Trainers hold their shards, a receiver two buffers and what the raw send goes into.
void check_memory(const SyncBenchWorld& world) {
  const int64_t needed = world.model.manifest.bytes + 3 * world.packed_bytes;
  const HostInfo host = probe_host(".");
  int64_t free = host.available_memory_bytes;
  if (host.memory_limit_bytes >= 0) {
    free = free < 0 ? host.memory_limit_bytes : std::min(free, host.memory_limit_bytes);
  }
  if (free >= 0 && needed > free) {
    fail(ErrorCode::kResourceExhausted,
         "the ranks would need {:.1f} GB of memory together, {:.1f} are free; take fewer receivers "
         "or a smaller model",
         static_cast<double>(needed) / 1e9, static_cast<double>(free) / 1e9);
  }
}

// A result as a child's report: numbers only, and all of this machine.
std::string as_text(const SyncBenchResult& result) {
  return {reinterpret_cast<const char*>(&result), sizeof result};
}

SyncBenchResult from_text(const std::string& text) {
  NIBBLE_CHECK(text.size() == sizeof(SyncBenchResult), "a result of {} bytes", text.size());
  SyncBenchResult result;
  std::copy(text.begin(), text.end(), reinterpret_cast<char*>(&result));
  return result;
}

}  // namespace

SyncBenchWorld::SyncBenchWorld(const PlannedModel& planned, const SyncBenchOptions& chosen)
    : model(planned),
      options(chosen),
      trainers(trainer_layout(model.manifest, model.table, options.from.mesh)) {
  const Layout engine = engine_layout(model.manifest, model.table, options.to.mesh);
  std::vector<std::string> members;
  members.reserve(trainers.ranks.size() + 1);
  for (int rank = 0; rank < num_trainers(); ++rank) {
    members.push_back(fmt::format("trainer/{}", rank));
  }
  members.emplace_back();
  for (int replica = 0; replica < options.to.replicas; ++replica) {
    for (const std::vector<Slice>& shard : engine.ranks) {
      members.back() = fmt::format("receiver/{}", num_receivers());
      plans.push_back(make_plan({model.manifest, trainers, shard, 1, members, options.sizes}));
      receivers.ranks.push_back(shard);
      packed_bytes += slices_bytes(model.manifest, shard);
    }
  }
  patience = 60s + std::chrono::milliseconds(packed_bytes / kLeastBytesPerMs);
}

SyncBenchResult run_sync_bench(const PlannedModel& model, const SyncBenchOptions& options) {
  check_mesh(model, "--from", options.from.mesh);
  check_mesh(model, "--to", options.to.mesh);
  const SyncBenchWorld world(model, options);
  check_memory(world);
  std::vector<ForkedRank> ranks;
  ranks.reserve(static_cast<size_t>(world.num_ranks()));
  for (int rank = 0; rank < world.num_trainers(); ++rank) {
    ranks.push_back({fmt::format("trainer {}", rank), [&world, rank](int port) {
                       run_bench_trainer(world, rank, port);
                       return std::string();
                     }});
  }
  for (int rank = 0; rank < world.num_receivers(); ++rank) {
    ranks.push_back({fmt::format("receiver {}", rank), [&world, rank](int port) {
                       return as_text(run_bench_receiver(world, rank, port));
                     }});
  }
  // Three waits a round, and joining the groups.
  const auto limit = world.patience * (3 * (options.rounds + kWarmUpRounds) + 2);
  return from_text(run_forked(ranks, Deadline::after(limit)).back());
}

}  // namespace nibble
