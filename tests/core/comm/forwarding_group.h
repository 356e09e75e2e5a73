#pragma once

#include "core/comm/process_group.h"

namespace nibble {

/// A group that passes every call on to another, for those that misbehave in some of them.
class ForwardingGroup : public ProcessGroup {
 public:
  explicit ForwardingGroup(ProcessGroup& inner) : inner_(inner) {}
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
    return inner_.send(bytes, peer, tag);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    return inner_.receive(bytes, peer, tag);
  }
  void check() const override { inner_.check(); }
  void abort() noexcept override { inner_.abort(); }

 private:
  ProcessGroup& inner_;
};

}  // namespace nibble
