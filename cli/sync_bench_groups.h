#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/comm/process_group.h"
#include "weight_sync/plan.h"
#include "weight_sync/transaction.h"

namespace nibble {

/// The group of all ranks of a benchmark: what they agree on between timed steps. Every method is
/// collective; one thread.
class BenchControl {
 public:
  explicit BenchControl(std::unique_ptr<ProcessGroup> group) : group_(std::move(group)) {}
  /// Every rank's value, by rank.
  std::vector<double> gather(double value);
  double most(double value);
  double sum(double value);
  /// Runs `body` when all ranks are ready for it; returns the slowest rank's milliseconds.
  double timed(const std::function<void()>& body);

 private:
  std::unique_ptr<ProcessGroup> group_;
};

/// A group that counts what arrives here, whoever asked for it.
class CountingGroup final : public ProcessGroup {
 public:
  explicit CountingGroup(std::unique_ptr<ProcessGroup> group) : group_(std::move(group)) {}
  int rank() const override { return group_->rank(); }
  int world() const override { return group_->world(); }
  const std::string& name() const override { return group_->name(); }
  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    received_bytes_ += std::ssize(out) - std::ssize(local);
    return group_->all_gather(local, out);
  }
  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    received_bytes_ += std::ssize(recv);
    return group_->all_to_all(send, send_bytes, recv, recv_bytes);
  }
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    return group_->send(bytes, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    received_bytes_ += std::ssize(bytes);
    return group_->receive(bytes, peer, tag);
  }
  void check() const override { group_->check(); }
  void abort() noexcept override { group_->abort(); }

  int64_t received_bytes() const { return received_bytes_; }

 private:
  std::unique_ptr<ProcessGroup> group_;
  std::atomic<int64_t> received_bytes_ = 0;
};

constexpr int kRawTag = 5;

/// A sender's hashes to the receiver, which is rank `receiver` of the group. The plan says which
/// slices they are of. In production they go over the control channel.
void send_report(const SenderReport& report, ProcessGroup& group, int receiver, Deadline deadline);
/// All senders' reports of one transaction.
std::vector<SenderReport> receive_reports(const SyncPlan& plan, const Transaction& transaction,
                                          ProcessGroup& group, Deadline deadline);

}  // namespace nibble
