#include "benchmarks/pair_world.h"

#include <algorithm>

#include "benchmarks/model_shapes.h"
#include "core/base/fail.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/layout.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

constexpr int kReportTag = 7;

}  // namespace

PairWorld::PairWorld(const std::string& model_name, int64_t group_size)
    : model(model_name),
      group(group_size),
      spec(make_model_spec(shape_of(model_name))),
      quantization(usual_plan(spec, group_size)),
      manifest(make_manifest(spec.table, quantization)),
      layout(trainer_layout(manifest, spec.table, Mesh{1})) {}

SyncPlan PairWorld::plan(int64_t bucket_bytes, int64_t epoch) const {
  const std::vector<std::string> members = {"trainer/0", "rollout/0"};
  return make_plan({manifest,
                    layout,
                    replica_slices(manifest),
                    epoch,
                    members,
                    {bucket_bytes, std::min(bucket_bytes, kGpuTransfers.direct_bytes)}});
}

int64_t num_transfers(const SyncPlan& plan) {
  std::vector<int64_t> pieces;
  for (const PlannedSlice& planned : plan.edges.at(0).slices) pieces.push_back(planned.bytes());
  return std::ssize(plan_buckets(pieces, plan.sizes));
}

void send_hashes(ProcessGroup& host, std::span<const quant::ContentHash> hashes) {
  host.send(std::as_bytes(hashes), kReceiverRank, kReportTag)->wait();
}

std::vector<quant::ContentHash> receive_hashes(ProcessGroup& host, size_t count) {
  std::vector<quant::ContentHash> hashes(count);
  host.receive(std::as_writable_bytes(std::span(hashes)), kSenderRank, kReportTag)->wait();
  return hashes;
}

int64_t send_version(const PairWorld& world, WeightSender& sender,
                     const std::shared_ptr<ResidentWeights>& weights,
                     const Transaction& transaction, const SyncPlan& plan, Transport& transport,
                     ProcessGroup& host, Deadline deadline) {
  sender.publish(transaction.version, replica_tensors(world.manifest, *weights), weights);
  device_memory(weights->device()).finish();
  start_together(host);
  const SenderReport report = sender.move(transaction, plan, transport, deadline);
  std::vector<quant::ContentHash> hashes;
  for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
  send_hashes(host, hashes);
  sender.retire_before(transaction.version);
  return report.bytes;
}

ReceivedVersion receive_version(WeightReceiver& receiver, const Transaction& transaction,
                                const SyncPlan& plan, Transport& transport, ProcessGroup& host,
                                Deadline deadline) {
  ReceivedVersion out;
  receiver.reserve(transaction, plan);
  start_together(host);
  Stopwatch watch;
  out.begin = SteadyClock::now();
  receiver.receive(transaction, transport, deadline);
  out.end = SteadyClock::now();
  out.move_ms = watch.restart_ms();
  const Edge& edge = plan.edges.at(0);
  const auto hashes = receive_hashes(host, edge.slices.size());
  SenderReport report{kSenderRank, transaction, {}};
  for (size_t i = 0; i < hashes.size(); ++i) {
    report.slices.push_back({edge.slices[i].slice, hashes[i]});
  }
  receiver.verify(transaction, std::span(&report, 1));
  out.verify_ms = watch.restart_ms();
  receiver.prepare(transaction);
  out.served = receiver.commit(transaction);
  out.commit_ms = watch.elapsed_ms();
  return out;
}

}  // namespace nibble
