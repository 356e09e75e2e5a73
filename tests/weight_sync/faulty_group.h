#pragma once

#include <csignal>

#include "core/base/array.h"
#include "core/base/fail.h"
#include "core/comm/process_group.h"

namespace nibble {

/// A group that misbehaves in one of its sends.
class FaultyGroup final : public ProcessGroup {
 public:
  enum class Fault {
    kNone,
    kDie,   ///< SIGKILL before the send
    kStop,  ///< SIGSTOP before the send
    kFlipByte,
  };
  /// `at_send` counts from 0. Both groups are on `device`.
  FaultyGroup(ProcessGroup& inner, Fault fault, int at_send, DeviceKind device)
      : inner_(inner), fault_(fault), at_send_(at_send), altered_(device) {}
  int rank() const override { return inner_.rank(); }
  int world() const override { return inner_.world(); }
  const std::string& name() const override { return inner_.name(); }
  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    return inner_.all_gather(local, out);
  }
  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    return inner_.all_to_all(send, send_bytes, recv, recv_bytes);
  }
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    if (fault_ == Fault::kNone || num_sends_++ != at_send_) return inner_.send(bytes, peer, tag);
    if (fault_ == Fault::kDie) raise(SIGKILL);
    if (fault_ == Fault::kStop) {
      raise(SIGSTOP);
      return inner_.send(bytes, peer, tag);
    }
    DeviceMemory& memory = device_memory(altered_.device());
    altered_ = Array<std::byte>::uninitialized(bytes.size(), altered_.device());
    memory.copy(altered_.data(), bytes.data(), altered_.num_bytes());
    std::byte* const target = altered_.data() + altered_.size() / 3;
    std::byte one{};
    memory.copy(&one, target, 1);
    one ^= std::byte{1};
    memory.copy(target, &one, 1);
    return inner_.send({altered_.data(), altered_.size()}, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    return inner_.receive(bytes, peer, tag);
  }
  void abort() noexcept override { inner_.abort(); }
  bool has_flipped() const { return !altered_.empty(); }

 private:
  ProcessGroup& inner_;
  Fault fault_;
  int at_send_;
  int num_sends_ = 0;
  Array<std::byte> altered_;
};

}  // namespace nibble
