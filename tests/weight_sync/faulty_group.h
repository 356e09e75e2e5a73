#pragma once

#include <algorithm>
#include <csignal>
#include <vector>

#include "core/base/array.h"
#include "core/base/fail.h"
#include "tests/core/comm/forwarding_group.h"

namespace nibble {

/// A group that misbehaves in one of its sends, or (dying and stopping) receives.
class FaultyGroup final : public ForwardingGroup {
 public:
  enum class Fault {
    kNone,
    kDie,   ///< SIGKILL before the transfer
    kStop,  ///< SIGSTOP before the transfer
    kFlipByte,
    kTruncate,  ///< the second half is not sent, as if memory had been read too early
    kSwap,      ///< the halves come in each other's place
  };
  /// `at_transfer` counts from 0. Both groups are on `device`.
  FaultyGroup(ProcessGroup& inner, Fault fault, int at_transfer, DeviceKind device)
      : ForwardingGroup(inner), fault_(fault), at_transfer_(at_transfer), altered_(device) {}
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    if (!is_hit()) return ForwardingGroup::send(bytes, peer, tag);
    std::vector<std::byte> host(bytes.size());
    device_memory(altered_.device()).copy(host.data(), bytes.data(), std::ssize(bytes));
    alter(host);
    altered_ = Array<std::byte>(std::span<const std::byte>(host), altered_.device());
    return ForwardingGroup::send({altered_.data(), altered_.size()}, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    (void)is_hit();
    return ForwardingGroup::receive(bytes, peer, tag);
  }
  bool has_altered() const { return !altered_.empty(); }

 private:
  // Counts a transfer; true if it is the one, unless this process ends there.
  bool is_hit() {
    if (fault_ == Fault::kNone || num_transfers_++ != at_transfer_) return false;
    if (fault_ == Fault::kDie) raise(SIGKILL);
    if (fault_ == Fault::kStop) raise(SIGSTOP);
    return true;
  }
  void alter(std::vector<std::byte>& bytes) const {
    const auto half = static_cast<std::ptrdiff_t>(bytes.size() / 2);
    if (fault_ == Fault::kFlipByte) bytes[bytes.size() / 3] ^= std::byte{1};
    if (fault_ == Fault::kTruncate) std::fill(bytes.begin() + half, bytes.end(), std::byte{0});
    if (fault_ == Fault::kSwap)
      std::swap_ranges(bytes.begin(), bytes.begin() + half, bytes.end() - half);
  }
  Fault fault_;
  int at_transfer_;
  int num_transfers_ = 0;
  Array<std::byte> altered_;
};

}  // namespace nibble
