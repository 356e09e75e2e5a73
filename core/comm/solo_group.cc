#include <algorithm>

#include "core/base/fail.h"
#include "core/comm/process_group.h"

namespace nibble {
namespace {

class Done final : public PendingTransfer {
 public:
  void wait() override {}
  void wait_until(Deadline) override {}
};

class SoloGroup final : public ProcessGroup {
 public:
  explicit SoloGroup(std::string name) : name_(std::move(name)) {}
  int rank() const override { return 0; }
  int world() const override { return 1; }
  const std::string& name() const override { return name_; }
  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    NIBBLE_CHECK(out.size() == local.size(), "all_gather of {} bytes into {}", local.size(),
                 out.size());
    if (out.data() != local.data()) std::copy(local.begin(), local.end(), out.begin());
    return std::make_unique<Done>();
  }
  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> /*send_bytes*/,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> /*recv_bytes*/) override {
    return all_gather(send, recv);
  }
  std::unique_ptr<PendingTransfer> send(std::span<const std::byte>, int peer, int) override {
    fail(ErrorCode::kInternal, "group '{}' has one rank; nothing can be sent to rank {}", name_,
         peer);
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte>, int peer, int) override {
    fail(ErrorCode::kInternal, "group '{}' has one rank; nothing comes from rank {}", name_, peer);
  }
  void abort() noexcept override {}

 private:
  std::string name_;
};

}  // namespace

std::unique_ptr<ProcessGroup> solo_group(const std::string& name) {
  return std::make_unique<SoloGroup>(name);
}

}  // namespace nibble
