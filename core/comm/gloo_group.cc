// The only file that sees Gloo's headers: Debian's are older than torch's Gloo, which is safe for
// the declarations used here and for nothing more (docs/decisions/0003-gloo-headers.md).
#include <ATen/ops/from_blob.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "core/base/fail.h"
#include "core/comm/process_group.h"

namespace nibble {
namespace {

at::Tensor bytes_tensor(std::span<const std::byte> bytes) {
  return at::from_blob(const_cast<std::byte*>(bytes.data()), {static_cast<int64_t>(bytes.size())},
                       at::TensorOptions().dtype(at::kByte));
}

// Gloo reports time-outs and lost peers as text only.
[[noreturn]] void rethrow(const std::string& what, const std::string& group, const char* operation,
                          std::chrono::milliseconds timeout) {
  const bool timed_out =
      what.find("imed out") != std::string::npos || what.find("imeout") != std::string::npos;
  const std::string reason = what.substr(0, what.find('\n'));
  if (timed_out) {
    fail(ErrorCode::kDeadlineExceeded, "group '{}': {} did not end within {} ms: {}", group,
         operation, timeout.count(), reason);
  }
  fail(ErrorCode::kUnavailable, "group '{}': {} failed because a peer is gone: {}", group,
       operation, reason);
}

class GlooTransfer final : public PendingTransfer {
 public:
  GlooTransfer(c10::intrusive_ptr<c10d::Work> work, const std::string& group, const char* operation,
               std::chrono::milliseconds timeout)
      : work_(std::move(work)), group_(group), operation_(operation), timeout_(timeout) {}
  void wait() override {
    try {
      work_->wait(timeout_);
    } catch (const std::exception& error) {
      rethrow(error.what(), group_, operation_, timeout_);
    }
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::string group_;
  const char* operation_;
  std::chrono::milliseconds timeout_;
};

class GlooGroup final : public ProcessGroup {
 public:
  GlooGroup(const Rendezvous& rendezvous, int rank, int world)
      : name_(rendezvous.group_name), rank_(rank), world_(world), timeout_(rendezvous.timeout) {
    try {
      c10d::TCPStoreOptions store_options;
      store_options.port = static_cast<uint16_t>(rendezvous.port);
      store_options.timeout = timeout_;
      store_options.waitWorkers = false;
      auto store = c10::make_intrusive<c10d::PrefixStore>(
          name_, c10::make_intrusive<c10d::TCPStore>(rendezvous.host, store_options));
      auto options = c10d::ProcessGroupGloo::Options::create(timeout_);
      options->devices.push_back(
          c10d::ProcessGroupGloo::createDeviceForHostname(rendezvous.host, /*lazyInit=*/false));
      options->threads = 2;
      group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, options);
    } catch (const std::exception& error) {
      rethrow(error.what(), name_, "joining", timeout_);
    }
  }

  int rank() const override { return rank_; }
  int world() const override { return world_; }
  const std::string& name() const override { return name_; }

  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    NIBBLE_CHECK(out.size() == local.size() * static_cast<size_t>(world_),
                 "all_gather of {} bytes into {}", local.size(), out.size());
    std::vector<at::Tensor> parts;
    for (int r = 0; r < world_; ++r) {
      parts.push_back(
          bytes_tensor(out.subspan(static_cast<size_t>(r) * local.size(), local.size())));
    }
    std::vector<std::vector<at::Tensor>> outputs = {parts};
    std::vector<at::Tensor> inputs = {bytes_tensor(local)};
    return start("all_gather", [&] { return group_->allgather(outputs, inputs); });
  }

  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    at::Tensor output = bytes_tensor(recv);
    at::Tensor input = bytes_tensor(send);
    std::vector<int64_t> send_splits(send_bytes.begin(), send_bytes.end());
    std::vector<int64_t> recv_splits(recv_bytes.begin(), recv_bytes.end());
    return start("all_to_all",
                 [&] { return group_->alltoall_base(output, input, recv_splits, send_splits); });
  }

  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    std::vector<at::Tensor> tensors = {bytes_tensor(bytes)};
    return start("send", [&] { return group_->send(tensors, peer, tag); });
  }

  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    std::vector<at::Tensor> tensors = {bytes_tensor(bytes)};
    return start("receive", [&] { return group_->recv(tensors, peer, tag); });
  }

  void abort() noexcept override {
    try {
      group_->abort();
    } catch (const std::exception&) {
      // Best effort: the waits of this group end by their own timeouts.
      aborted_ = true;
    }
  }

 private:
  template <typename Start>
  std::unique_ptr<PendingTransfer> start(const char* operation, Start&& begin) {
    try {
      return std::make_unique<GlooTransfer>(begin(), name_, operation, timeout_);
    } catch (const std::exception& error) {
      rethrow(error.what(), name_, operation, timeout_);
    }
  }

  std::string name_;
  int rank_;
  int world_;
  std::chrono::milliseconds timeout_;
  bool aborted_ = false;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

}  // namespace

struct RendezvousServer::Impl {
  c10::intrusive_ptr<c10d::TCPStore> store;
};

RendezvousServer::RendezvousServer(int port) : impl_(std::make_unique<Impl>()) {
  try {
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = true;
    options.waitWorkers = false;
    options.timeout = std::chrono::seconds(30);
    impl_->store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  } catch (const std::exception& error) {
    const std::string what = error.what();
    fail(ErrorCode::kResourceExhausted, "cannot open a rendezvous port{}: {}",
         port == 0 ? std::string() : fmt::format(" {}", port), what.substr(0, what.find('\n')));
  }
}

RendezvousServer::~RendezvousServer() = default;

int RendezvousServer::port() const { return impl_->store->getPort(); }

std::unique_ptr<ProcessGroup> join_gloo_group(const Rendezvous& rendezvous, int rank, int world) {
  return std::make_unique<GlooGroup>(rendezvous, rank, world);
}

}  // namespace nibble
