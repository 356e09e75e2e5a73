// A receiver's process of `nibble bench sync`.
#include <algorithm>
#include <charconv>
#include <fstream>
#include <memory>

#include "cli/sync_bench_groups.h"
#include "cli/sync_bench_world.h"
#include "core/base/array.h"
#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/hash_batch.h"
#include "weight_sync/receiver.h"

namespace nibble {
namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

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

/// One rank's side of a publication.
class BenchReceiver {
 public:
  virtual ~BenchReceiver() = default;
  virtual void reserve(const Transaction& transaction) = 0;
  /// Everything between: moves, compares every slice's hash with its sender's, and is prepared.
  virtual void take(const Transaction& transaction, ProcessGroup& group, Transport& transport,
                    Deadline deadline) = 0;
  virtual void commit(const Transaction& transaction) = 0;
};

// Production's own receiver.
class WholeReceiver final : public BenchReceiver {
 public:
  WholeReceiver(const SyncBenchWorld& world, const SyncPlan& plan)
      : plan_(plan),
        receiver_("bench", world.model.table, world.model.quantization, world.model.manifest,
                  kernels_) {}
  void reserve(const Transaction& transaction) override { receiver_.reserve(transaction, plan_); }
  void take(const Transaction& transaction, ProcessGroup& group, Transport& transport,
            Deadline deadline) override {
    receiver_.receive(transaction, transport, deadline);
    receiver_.verify(transaction, receive_reports(plan_, transaction, group, deadline));
    receiver_.prepare(transaction);
  }
  void commit(const Transaction& transaction) override { receiver_.commit(transaction); }

 private:
  const SyncPlan& plan_;
  kernels::Serial serial_;
  kernels::CpuWeightKernels kernels_{serial_};
  WeightReceiver receiver_;
};

// A part of a model: two buffers of it, filled in turn. There is no protocol for it yet.
class ShardReceiver final : public BenchReceiver {
 public:
  ShardReceiver(const SyncBenchWorld& world, const SyncPlan& plan, std::span<const Slice> shard)
      : manifest_(world.model.manifest), plan_(plan), places_(world.model.manifest.tensors.size()) {
    for (const Slice& slice : shard) {
      places_[static_cast<size_t>(slice.tensor)] = {bytes_, slice.row_begin};
      const int64_t bytes = slice.rows() * manifest_.at(slice.tensor).row_bytes();
      bytes_ += (bytes + 3) / 4 * 4;
    }
  }
  void reserve(const Transaction&) override {
    if (shadow_.num_bytes() == 0) {
      shadow_ = Array<std::byte>::uninitialized(static_cast<size_t>(bytes_));
    }
  }
  void take(const Transaction& transaction, ProcessGroup& group, Transport& transport,
            Deadline deadline) override {
    std::vector<IncomingEdge> edges;
    std::vector<std::vector<quant::ContentHash>> arrived;
    for (const Edge& edge : plan_.edges) {
      edges.push_back({edge.sender, {}});
      arrived.emplace_back(edge.slices.size());
      for (const PlannedSlice& planned : edge.slices) edges.back().pieces.push_back(place(planned));
    }
    HashBatch hashes(kernels_, plan_.sizes.bucket_bytes);
    const ArrivalHandler hash_segment = [&](size_t e, const Segment& segment) {
      const auto i = static_cast<size_t>(segment.piece);
      hashes.add(manifest_, plan_.edges[e].slices[i], segment, edges[e].pieces[i], &arrived[e][i]);
    };
    transport.receive(edges, plan_.sizes, hash_segment, deadline);
    hashes.flush();
    compare(arrived, receive_reports(plan_, transaction, group, deadline));
  }
  void commit(const Transaction&) override { std::swap(served_, shadow_); }

 private:
  struct Place {
    int64_t offset = 0;
    int64_t row_begin = 0;
  };
  std::span<std::byte> place(const PlannedSlice& planned) {
    const Place& at = places_[static_cast<size_t>(planned.slice.tensor)];
    const int64_t rows_before = planned.slice.row_begin - at.row_begin;
    return {
        shadow_.data() + at.offset + rows_before * manifest_.at(planned.slice.tensor).row_bytes(),
        static_cast<size_t>(planned.bytes())};
  }
  void compare(const std::vector<std::vector<quant::ContentHash>>& arrived,
               const std::vector<SenderReport>& reports) const {
    for (size_t e = 0; e < arrived.size(); ++e) {
      for (size_t i = 0; i < arrived[e].size(); ++i) {
        const SliceHash& sent = reports[e].slices[i];
        if (sent.hash == arrived[e][i]) continue;
        fail(ErrorCode::kDataLoss, "rows [{}, {}) of tensor '{}' from sender {} differ",
             sent.slice.row_begin, sent.slice.row_end, manifest_.at(sent.slice.tensor).name,
             reports[e].sender);
      }
    }
  }

  const Manifest& manifest_;
  const SyncPlan& plan_;
  std::vector<Place> places_;  // by tensor
  int64_t bytes_ = 0;
  kernels::Serial serial_;
  kernels::CpuWeightKernels kernels_{serial_};
  Array<std::byte> served_, shadow_;
};

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

std::unique_ptr<BenchReceiver> make_receiver(const SyncBenchWorld& world, int rank) {
  if (world.is_transaction) return std::make_unique<WholeReceiver>(world, world.plan(rank));
  return std::make_unique<ShardReceiver>(world, world.plan(rank),
                                         world.receivers.ranks[static_cast<size_t>(rank)]);
}

SyncBenchResult summary(const SyncBenchWorld& world, const Samples& samples) {
  SyncBenchResult result;
  result.is_transaction = world.is_transaction;
  result.num_receivers = world.num_receivers();
  result.packed_bytes = world.packed_bytes;
  result.publication_ms = median(samples.publication_ms);
  result.wire_ms = median(samples.wire_ms);
  result.raw_ms = median(samples.raw_ms);
  if (world.is_transaction) {
    result.pause_ms = median(samples.pause_ms);
    result.max_pause_ms = *std::max_element(samples.pause_ms.begin(), samples.pause_ms.end());
  }
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
  const auto receiver = make_receiver(world, rank);
  const int64_t shard_bytes =
      slices_bytes(world.model.manifest, world.receivers.ranks[static_cast<size_t>(rank)]);
  const int64_t data_before = memory_figure("VmRSS") - memory_figure("RssFile");
  int64_t extra_bytes = 0, publication_bytes = 0;
  std::unique_ptr<Scratch> scratch;
  Samples samples;
  for (int round = 0; round < kWarmUpRounds + world.options.rounds; ++round) {
    failpoint(fmt::format("bench_receiver/{}.reserve", rank));
    const Transaction transaction = world.transaction(rank, round + 1);
    receiver->reserve(transaction);
    const int64_t received_before = group.received_bytes();
    // Throws unless every hash agrees, so that no rate of wrong bytes is ever printed.
    const double publication_ms =
        control.timed([&] { receiver->take(transaction, group, transport, world.deadline()); });
    publication_bytes = group.received_bytes() - received_before;
    const Stopwatch watch;
    receiver->commit(transaction);
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
