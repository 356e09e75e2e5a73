// A trainer's process of `nibble bench sync`.
#include <future>
#include <memory>

#include "cli/sync_bench_groups.h"
#include "cli/sync_bench_world.h"
#include "core/base/array.h"
#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/sender.h"

namespace nibble {
namespace {

// A rank's packed shard: random bytes, other ones for each version.
class RandomShard {
 public:
  RandomShard(const Manifest& manifest, const std::vector<Slice>& slices, int rank)
      : rank_(static_cast<uint32_t>(rank)) {
    std::vector<int64_t> offsets;  // of each slice, in bytes
    int64_t words = 0;
    for (const Slice& slice : slices) {
      offsets.push_back(words * 4);
      words += (slice.rows() * manifest.at(slice.tensor).row_bytes() + 3) / 4;
    }
    words_ = Array<uint32_t>::uninitialized(static_cast<size_t>(words));
    tensors_.resize(static_cast<size_t>(manifest.size()));
    for (size_t i = 0; i < slices.size(); ++i) {
      const int64_t bytes = slices[i].rows() * manifest.at(slices[i].tensor).row_bytes();
      tensors_[static_cast<size_t>(slices[i].tensor)] = {
          slices[i].row_begin, slices[i].row_end,
          memory().subspan(static_cast<size_t>(offsets[i]), static_cast<size_t>(bytes))};
    }
  }
  void draw(int64_t version) {
    uint32_t state = rank_ * 7919u + static_cast<uint32_t>(version);
    for (uint32_t& word : words_) word = state = state * 1664525u + 1013904223u;
  }
  const std::vector<LocalTensor>& tensors() const { return tensors_; }
  std::span<const std::byte> memory() const {
    return {reinterpret_cast<const std::byte*>(words_.data()),
            static_cast<size_t>(words_.num_bytes())};
  }

 private:
  uint32_t rank_;
  Array<uint32_t> words_;
  std::vector<LocalTensor> tensors_;
};

// A trainer's way to one receiver.
struct Way {
  int receiver = 0;
  std::unique_ptr<ProcessGroup> group;
  std::unique_ptr<GroupTransport> transport;
  const SyncPlan* plan = nullptr;
  const Edge* edge = nullptr;
};

// Receivers are served side by side, as by a trainer's service.
void for_each_way(std::vector<Way>& ways, const std::function<void(Way&)>& body) {
  std::vector<std::future<void>> others;
  for (size_t i = 1; i < ways.size(); ++i) {
    if (ways[i].edge == nullptr) continue;
    others.push_back(std::async(std::launch::async, [&body, &way = ways[i]] { body(way); }));
  }
  if (ways[0].edge != nullptr) body(ways[0]);
  for (std::future<void>& other : others) other.get();
}

}  // namespace

void run_bench_trainer(const SyncBenchWorld& world, int rank, int port) {
  const Manifest& manifest = world.model.manifest;
  const int receiver_rank = world.num_trainers();
  BenchControl control(
      join_gloo_group({"127.0.0.1", port, "control", world.patience}, rank, world.num_ranks()));
  std::vector<Way> ways;
  for (int r = 0; r < world.num_receivers(); ++r) {
    Way& way = ways.emplace_back();
    way.receiver = r;
    way.group = join_gloo_group({"127.0.0.1", port, fmt::format("receiver {}", r), world.patience},
                                rank, receiver_rank + 1);
    way.transport = std::make_unique<GroupTransport>(*way.group, receiver_rank);
    way.plan = &world.plan(r);
    way.edge = way.plan->edge_of(rank);
  }
  const auto shard = std::make_shared<RandomShard>(
      manifest, world.trainers.ranks[static_cast<size_t>(rank)], rank);
  const kernels::Serial serial;
  const kernels::CpuWeightKernels kernels(serial);
  WeightSender sender(rank, manifest, kernels);
  for (int round = 0; round < kWarmUpRounds + world.options.rounds; ++round) {
    const int64_t version = round + 1;
    failpoint(fmt::format("bench_trainer/{}.publish", rank));
    shard->draw(version);
    sender.publish(version, shard->tensors(), shard);
    sender.retire_before(version);
    control.timed([&] {
      for_each_way(ways, [&](Way& way) {
        const Deadline deadline = world.deadline();
        const SenderReport report = sender.move(world.transaction(way.receiver, version), *way.plan,
                                                *way.transport, deadline);
        send_report(report, *way.group, receiver_rank, deadline);
      });
    });
    control.most(0.0);  // the receivers commit
    if (round < kWarmUpRounds) continue;
    control.timed([&] {
      for_each_way(ways, [&](Way& way) {
        way.transport->send(
            edge_pieces(manifest, *way.edge, shard->tensors()), way.plan->sizes,
            [](const Segment&) {}, world.deadline());
      });
    });
    control.timed([&] {
      for_each_way(ways, [&](Way& way) {
        const auto bytes = shard->memory().first(static_cast<size_t>(way.edge->bytes));
        way.group->send(bytes, receiver_rank, kRawTag)->wait_until(world.deadline());
      });
    });
  }
  control.most(0.0);
  control.sum(0.0);
}

}  // namespace nibble
