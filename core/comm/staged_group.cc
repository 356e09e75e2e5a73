#include "core/comm/staged_group.h"

#include "core/base/array.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

Array<std::byte> on_host(std::span<const std::byte> bytes) {
  auto copy = Array<std::byte>::uninitialized(bytes.size());
  if (!bytes.empty()) {
    device_memory(DeviceKind::kCuda)
        .copy(copy.data(), bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  return copy;
}

std::span<std::byte> bytes_of(Array<std::byte>& array) { return {array.data(), array.size()}; }

class StagedPending final : public PendingTransfer {
 public:
  StagedPending(Array<std::byte> sent, Array<std::byte> received, std::span<std::byte> target)
      : sent_(std::move(sent)), received_(std::move(received)), target_(target) {}
  void set_inner(std::unique_ptr<PendingTransfer> inner) { inner_ = std::move(inner); }
  std::span<std::byte> sent() { return bytes_of(sent_); }
  std::span<std::byte> received() { return bytes_of(received_); }

  void wait() override {
    inner_->wait();
    place();
  }
  void wait_until(Deadline deadline) override {
    inner_->wait_until(deadline);
    place();
  }

 private:
  void place() {
    if (target_.empty()) return;
    device_memory(DeviceKind::kCuda)
        .copy(target_.data(), received_.data(), static_cast<int64_t>(target_.size()));
  }
  Array<std::byte> sent_;
  Array<std::byte> received_;
  std::span<std::byte> target_;
  std::unique_ptr<PendingTransfer> inner_;  // goes first: it uses the memory above
};

class StagedGroup final : public ProcessGroup {
 public:
  explicit StagedGroup(std::unique_ptr<ProcessGroup> inner) : inner_(std::move(inner)) {}
  int rank() const override { return inner_->rank(); }
  int world() const override { return inner_->world(); }
  const std::string& name() const override { return inner_->name(); }
  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    auto pending = std::make_unique<StagedPending>(
        on_host(local), Array<std::byte>::uninitialized(out.size()), out);
    pending->set_inner(inner_->all_gather(pending->sent(), pending->received()));
    return pending;
  }
  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    auto pending = std::make_unique<StagedPending>(
        on_host(send), Array<std::byte>::uninitialized(recv.size()), recv);
    pending->set_inner(
        inner_->all_to_all(pending->sent(), send_bytes, pending->received(), recv_bytes));
    return pending;
  }
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    auto pending =
        std::make_unique<StagedPending>(on_host(bytes), Array<std::byte>(), std::span<std::byte>());
    pending->set_inner(inner_->send(pending->sent(), peer, tag));
    return pending;
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    auto pending = std::make_unique<StagedPending>(
        Array<std::byte>(), Array<std::byte>::uninitialized(bytes.size()), bytes);
    pending->set_inner(inner_->receive(pending->received(), peer, tag));
    return pending;
  }
  void abort() noexcept override { inner_->abort(); }

 private:
  std::unique_ptr<ProcessGroup> inner_;
};

}  // namespace

std::unique_ptr<ProcessGroup> staged_group(std::unique_ptr<ProcessGroup> inner) {
  return std::make_unique<StagedGroup>(std::move(inner));
}

}  // namespace nibble
