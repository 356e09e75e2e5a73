// A receiver's process of `nibble bench sync`.
#include <algorithm>
#include <charconv>
#include <fstream>
#include <memory>

#include "cli/median.h"
#include "cli/sync_bench_groups.h"
#include "cli/sync_bench_world.h"
#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/receiver.h"

namespace nibble {
namespace {

// A line of the kernel's account of this process, "VmHWM:  1234 kB".
int64_t memory_figure(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!line.starts_with(name + ":")) continue;
    const size_t digits = line.find_first_of("0123456789");
    int64_t kib = 0;
    if (digits == std::string::npos) break;
    std::from_chars(line.data() + digits, line.data() + line.size(), kib);
    return kib * 1024;
  }
  fail(ErrorCode::kUnavailable, "/proc/self/status has no {}", name);
}

// Memory that the transport alone and raw sends go into: an edge's pieces, one after another.
class Scratch {
 public:
  explicit Scratch(const SyncPlan& plan) : plan_(plan) {
    for (const Edge& edge : plan.edges) memory_.emplace_back(static_cast<size_t>(edge.bytes));
  }
  void receive_pieces(Transport& transport, Deadline deadline) {
    std::vector<IncomingEdge> edges;
    for (size_t e = 0; e < memory_.size(); ++e) {
      edges.push_back({plan_.edges[e].sender, {}});
      size_t at = 0;
      for (const PlannedSlice& planned : plan_.edges[e].slices) {
        const auto bytes = static_cast<size_t>(planned.bytes());
        edges.back().pieces.push_back(std::span(memory_[e]).subspan(at, bytes));
        at += bytes;
      }
    }
    transport.receive(
        edges, plan_.sizes, [](size_t, const Segment&) {}, deadline);
  }
  void receive_raw(ProcessGroup& group, Deadline deadline) {
    std::vector<std::unique_ptr<PendingTransfer>> pending;
    for (size_t e = 0; e < memory_.size(); ++e) {
      pending.push_back(group.receive(memory_[e], plan_.edges[e].sender, kRawTag));
    }
    for (const auto& transfer : pending) transfer->wait_until(deadline);
  }

 private:
  const SyncPlan& plan_;
  std::vector<std::vector<std::byte>> memory_;  // by edge
};

struct Samples {
  std::vector<double> publication_ms, pause_ms, wire_ms, raw_ms;
};

SyncBenchResult summary(const SyncBenchWorld& world, const Samples& samples) {
  SyncBenchResult result;
  result.num_receivers = world.num_receivers();
  result.packed_bytes = world.packed_bytes;
  result.publication_ms = median(samples.publication_ms);
  result.wire_ms = median(samples.wire_ms);
  result.raw_ms = median(samples.raw_ms);
  result.pause_ms = median(samples.pause_ms);
  result.max_pause_ms = *std::max_element(samples.pause_ms.begin(), samples.pause_ms.end());
  result.num_rounds = std::ssize(samples.publication_ms);
  return result;
}

}  // namespace

SyncBenchResult run_bench_receiver(const SyncBenchWorld& world, int rank, int port) {
  const int trainers = world.num_trainers();
  BenchControl control(join_gloo_group({"127.0.0.1", port, "control", world.patience},
                                       trainers + rank, world.num_ranks()));
  CountingGroup group(
      join_gloo_group({"127.0.0.1", port, fmt::format("receiver {}", rank), world.patience},
                      trainers, trainers + 1));
  GroupTransport transport(group, trainers);
  const std::vector<Slice>& shard = world.receivers.ranks[static_cast<size_t>(rank)];
  const kernels::Serial serial;
  const kernels::CpuWeightKernels kernels(serial);
  ReceiverOptions receiving;
  if (shard != replica_slices(world.model.manifest)) receiving.destination = shard;
  WeightReceiver receiver("bench", world.model.table, world.model.quantization,
                          world.model.manifest, kernels, std::move(receiving));
  const int64_t shard_bytes = slices_bytes(world.model.manifest, shard);
  const int64_t data_before = memory_figure("VmRSS") - memory_figure("RssFile");
  int64_t extra_bytes = 0, publication_bytes = 0;
  std::unique_ptr<Scratch> scratch;
  Samples samples;
  for (int round = 0; round < kWarmUpRounds + world.options.rounds; ++round) {
    failpoint(fmt::format("bench_receiver/{}.reserve", rank));
    const Transaction transaction = world.transaction(rank, round + 1);
    receiver.reserve(transaction, world.plan(rank));
    const int64_t received_before = group.received_bytes();
    // Throws unless every hash agrees, so that no rate of wrong bytes is ever printed.
    const double publication_ms = control.timed([&] {
      receiver.receive(transaction, transport, world.deadline());
      receiver.verify(transaction,
                      receive_reports(world.plan(rank), transaction, group, world.deadline()));
      receiver.prepare(transaction);
    });
    publication_bytes = group.received_bytes() - received_before;
    const Stopwatch watch;
    receiver.commit(transaction);
    const double pause_ms = control.most(watch.elapsed_ms());
    if (round < kWarmUpRounds) continue;
    if (scratch == nullptr) {
      // Code that was paged in meanwhile is not the publication's.
      const int64_t peak_data = memory_figure("VmHWM") - memory_figure("RssFile");
      extra_bytes = peak_data - data_before - 2 * shard_bytes;
      scratch = std::make_unique<Scratch>(world.plan(rank));
    }
    samples.publication_ms.push_back(publication_ms);
    samples.pause_ms.push_back(pause_ms);
    samples.wire_ms.push_back(
        control.timed([&] { scratch->receive_pieces(transport, world.deadline()); }));
    samples.raw_ms.push_back(control.timed([&] { scratch->receive_raw(group, world.deadline()); }));
  }
  SyncBenchResult result = summary(world, samples);
  result.peak_extra_bytes =
      static_cast<int64_t>(control.most(static_cast<double>(std::max<int64_t>(0, extra_bytes))));
  result.bytes = static_cast<int64_t>(control.sum(static_cast<double>(publication_bytes)));
  return result;
}

}  // namespace nibble
