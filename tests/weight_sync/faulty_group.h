#pragma once

#include <csignal>

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
  };
  /// `at_transfer` counts from 0. Both groups are on `device`.
  FaultyGroup(ProcessGroup& inner, Fault fault, int at_transfer, DeviceKind device)
      : ForwardingGroup(inner), fault_(fault), at_transfer_(at_transfer), altered_(device) {}
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    if (!is_hit() || fault_ != Fault::kFlipByte) return ForwardingGroup::send(bytes, peer, tag);
    DeviceMemory& memory = device_memory(altered_.device());
    altered_ = Array<std::byte>::uninitialized(bytes.size(), altered_.device());
    memory.copy(altered_.data(), bytes.data(), altered_.num_bytes());
    std::byte* const target = altered_.data() + altered_.size() / 3;
    std::byte one{};
    memory.copy(&one, target, 1);
    one ^= std::byte{1};
    memory.copy(target, &one, 1);
    return ForwardingGroup::send({altered_.data(), altered_.size()}, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    (void)is_hit();
    return ForwardingGroup::receive(bytes, peer, tag);
  }
  bool has_flipped() const { return !altered_.empty(); }

 private:
  // Counts a transfer; true if it is the one, unless this process ends there.
  bool is_hit() {
    if (fault_ == Fault::kNone || num_transfers_++ != at_transfer_) return false;
    if (fault_ == Fault::kDie) raise(SIGKILL);
    if (fault_ == Fault::kStop) raise(SIGSTOP);
    return true;
  }
  Fault fault_;
  int at_transfer_;
  int num_transfers_ = 0;
  Array<std::byte> altered_;
};

}  // namespace nibble
