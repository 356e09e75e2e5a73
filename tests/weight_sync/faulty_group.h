#pragma once

#include <csignal>

#include "core/base/array.h"
#include "core/base/fail.h"
#include "tests/core/comm/forwarding_group.h"

namespace nibble {

/// A group that misbehaves in one of its sends.
class FaultyGroup final : public ForwardingGroup {
 public:
  enum class Fault {
    kNone,
    kDie,   ///< SIGKILL before the send
    kStop,  ///< SIGSTOP before the send
    kFlipByte,
  };
  /// `at_send` counts from 0. Both groups are on `device`.
  FaultyGroup(ProcessGroup& inner, Fault fault, int at_send, DeviceKind device)
      : ForwardingGroup(inner), fault_(fault), at_send_(at_send), altered_(device) {}
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    if (fault_ == Fault::kNone || num_sends_++ != at_send_)
      return ForwardingGroup::send(bytes, peer, tag);
    if (fault_ == Fault::kDie) raise(SIGKILL);
    if (fault_ == Fault::kStop) {
      raise(SIGSTOP);
      return ForwardingGroup::send(bytes, peer, tag);
    }
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
  bool has_flipped() const { return !altered_.empty(); }

 private:
  Fault fault_;
  int at_send_;
  int num_sends_ = 0;
  Array<std::byte> altered_;
};

}  // namespace nibble
