#pragma once

// Publications between real processes, over Gloo on the CPU and over NCCL with all processes on one
// GPU. Ranks 0 and 1 are trainers, the others one worker each. A worker's group has the trainers at
// their ranks and the worker last.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/comm_cuda/nccl_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/weight_sync/faulty_group.h"
#include "tests/weight_sync/sync_world.h"
#include "weight_sync/group_transport.h"

namespace nibble {

using namespace std::chrono_literals;
using Fault = FaultyGroup::Fault;

enum class Wire { kGloo, kNccl };

constexpr int kControlTag = 7;

inline void require(bool condition, const std::string& what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

/// What a process of a test has, whatever the wire.
class Member {
 public:
  Member(Wire wire, int port, int rank, bool hosts_store) : wire_(wire), port_(port), rank_(rank) {
    if (wire == Wire::kNccl) {
      share_gpu_between_nccl_ranks(rank);
      ops::use_cuda_device(0);
      gpu_kernels_ = ops::make_cuda_weight_kernels();
    }
    if (hosts_store) server_ = std::make_unique<RendezvousServer>(port);
  }
  const kernels::WeightKernels* kernels() const { return gpu_kernels_.get(); }
  DeviceKind device() const { return wire_ == Wire::kNccl ? DeviceKind::kCuda : DeviceKind::kCpu; }
  // The group that weights go through.
  std::unique_ptr<ProcessGroup> join(const std::string& name, int rank, int world) const {
    const Rendezvous rendezvous{"127.0.0.1", port_, name, 20s};
    return wire_ == Wire::kNccl ? join_nccl_group(rendezvous, rank, world)
                                : join_gloo_group(rendezvous, rank, world);
  }
  // The one that reports go through.
  std::unique_ptr<ProcessGroup> join_control(const std::string& name, int rank, int world) const {
    return join_gloo_group({"127.0.0.1", port_, name + " control", 20s}, rank, world);
  }
  int rank() const { return rank_; }

 private:
  Wire wire_;
  int port_;
  int rank_;
  std::unique_ptr<kernels::WeightKernels> gpu_kernels_;
  std::unique_ptr<RendezvousServer> server_;
};

struct Groups {
  Groups(const Member& member, const std::string& name, int rank, int world)
      : weights(member.join(name, rank, world)),
        control(member.join_control(name, rank, world)),
        device(member.device()) {}
  std::unique_ptr<ProcessGroup> weights, control;
  DeviceKind device;
};

inline void send_report(ProcessGroup& control, const SenderReport& report, int to) {
  std::vector<quant::ContentHash> hashes;
  for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
  control.send(std::as_bytes(std::span(hashes)), to, kControlTag)->wait();
}

inline std::vector<SenderReport> receive_reports(ProcessGroup& control, const SyncPlan& plan,
                                                 const Transaction& transaction) {
  std::vector<SenderReport> reports;
  for (const Edge& edge : plan.edges) {
    std::vector<quant::ContentHash> hashes(edge.slices.size());
    control.receive(std::as_writable_bytes(std::span(hashes)), edge.sender, kControlTag)->wait();
    SenderReport report{edge.sender, transaction, {}};
    for (size_t i = 0; i < hashes.size(); ++i) {
      report.slices.push_back({edge.slices[i].slice, hashes[i]});
    }
    reports.push_back(std::move(report));
  }
  return reports;
}

/// Returns the bytes that went.
inline int64_t send_version(SyncWorld& world, const Groups& groups, int rank,
                            const Transaction& transaction, Fault fault = Fault::kNone,
                            int at_send = 0) {
  FaultyGroup wire(*groups.weights, fault, at_send, groups.device);
  GroupTransport transport(wire, world.layout.world(), groups.device);
  const SenderReport report = world.senders[static_cast<size_t>(rank)]->move(
      transaction, world.plan(transaction.epoch), transport, Deadline::after(10s));
  require(fault == Fault::kNone || wire.has_altered(), "the fault was not injected");
  send_report(*groups.control, report, world.layout.world());
  return report.bytes;
}

/// RESERVE to COMMIT on the worker's side.
inline void receive_version(SyncWorld& world, WeightReceiver& receiver, const Groups& groups,
                            const Transaction& transaction, const ResidentWeights& want) {
  const SyncPlan plan = world.plan(transaction.epoch);
  receiver.reserve(transaction, plan);
  GroupTransport transport(*groups.weights, world.layout.world(), groups.device);
  receiver.receive(transaction, transport, Deadline::after(10s));
  receiver.verify(transaction, receive_reports(*groups.control, plan, transaction));
  receiver.prepare(transaction);
  const ServedWeights served = receiver.commit(transaction);
  require(same_bytes(world.model, *served.weights, want), "served bytes differ");
}
inline void receive_version(SyncWorld& world, WeightReceiver& receiver, const Groups& groups,
                            const Transaction& transaction) {
  receive_version(world, receiver, groups, transaction, *world.model.version(transaction.version));
}

/// Once over each wire; over NCCL only where there is a GPU.
class OverEachWire : public ::testing::TestWithParam<Wire> {
 protected:
  void SetUp() override {
    if (GetParam() == Wire::kGloo) return;
    // In a child: CUDA must not start in the process that forks.
    static const bool has_gpu =
        run_ranks(1, 60s, [](int) { require(ops::num_cuda_devices() > 0, "no GPU"); }) == 1;
    if (!has_gpu) GTEST_SKIP() << "no GPU on this machine";
  }
};
inline std::string wire_name(const ::testing::TestParamInfo<Wire>& info) {
  return info.param == Wire::kGloo ? "Gloo" : "Nccl";
}

}  // namespace nibble
