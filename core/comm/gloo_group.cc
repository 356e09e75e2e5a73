// The only file that sees Gloo's headers: Debian's are older than torch's Gloo, which is safe for
// the declarations used here and for nothing more (docs/decisions/0003-gloo-headers.md).
#include <ATen/ops/from_blob.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <signal.h>

#include <algorithm>
#include <csignal>
#include <mutex>
#include <set>

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

// Works that somebody may be waiting on, so that abort() can wake the waiters: c10d's Gloo backend
// has no abort of its own.
class LiveWorks {
 public:
  bool add(c10d::Work* work) {
    const std::lock_guard lock(mutex_);
    if (!aborted_) works_.insert(work);
    return !aborted_;
  }
  void remove(c10d::Work* work) {
    const std::lock_guard lock(mutex_);
    works_.erase(work);
  }
  bool aborted() const {
    const std::lock_guard lock(mutex_);
    return aborted_;
  }
  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    for (c10d::Work* work : works_) work->abort();
  }

 private:
  mutable std::mutex mutex_;
  std::set<c10d::Work*> works_;  // guarded by mutex_
  bool aborted_ = false;         // guarded by mutex_
};

// What a transfer and its group share; the group may be destroyed first.
struct GroupState {
  std::string name;
  std::chrono::milliseconds timeout;
  LiveWorks live;
};

class GlooTransfer final : public PendingTransfer {
 public:
  // Only point-to-point works can be woken (`is_abortable`).
  GlooTransfer(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<GroupState> state,
               const char* operation, bool is_abortable)
      : work_(std::move(work)), state_(std::move(state)), operation_(operation) {
    if (is_abortable && !state_->live.add(work_.get())) fail_aborted();
  }
  ~GlooTransfer() override { state_->live.remove(work_.get()); }
  void wait() override { wait_for(state_->timeout); }
  void wait_until(Deadline deadline) override {
    // Zero would mean the default timeout.
    wait_for(std::max(deadline.remaining(), std::chrono::milliseconds(1)));
  }

 private:
  [[noreturn]] void fail_aborted() const {
    fail(ErrorCode::kUnavailable, "group '{}': {} was aborted", state_->name, operation_);
  }
  void wait_for(std::chrono::milliseconds timeout) {
    bool completed = false;
    try {
      completed = work_->wait(timeout);
    } catch (const std::exception& error) {
      if (state_->live.aborted()) fail_aborted();
      rethrow(error.what(), state_->name, operation_, timeout);
    }
    if (!completed || state_->live.aborted()) fail_aborted();
  }

  c10::intrusive_ptr<c10d::Work> work_;
  std::shared_ptr<GroupState> state_;
  const char* operation_;
};

// Gloo writes to sockets without MSG_NOSIGNAL: by default, writing to a peer that died would kill
// this process without a word, instead of failing the write. A handler of the program's own stays.
void ignore_broken_pipes() {
  static const bool done = [] {
    struct sigaction current {};
    if (sigaction(SIGPIPE, nullptr, &current) == 0 && current.sa_handler == SIG_DFL) {
      std::signal(SIGPIPE, SIG_IGN);
    }
    return true;
  }();
  (void)done;
}

// c10d writes to stderr, with backtraces, what it then throws, and which names it could not look
// up.
void silence_c10d() {
  static const int done = FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  (void)done;
}

class GlooGroup final : public ProcessGroup {
 public:
  GlooGroup(const Rendezvous& rendezvous, int rank, int world)
      : state_(std::make_shared<GroupState>()), rank_(rank), world_(world) {
    ignore_broken_pipes();
    silence_c10d();
    state_->name = rendezvous.group_name;
    state_->timeout = rendezvous.timeout;
    const bool has_own = rendezvous.transfer_timeout.count() > 0;
    const auto transfers = has_own ? rendezvous.transfer_timeout : rendezvous.timeout;
    try {
      c10d::TCPStoreOptions store_options;
      store_options.port = static_cast<uint16_t>(rendezvous.port);
      store_options.timeout = state_->timeout;
      store_options.waitWorkers = false;
      auto store = c10::make_intrusive<c10d::PrefixStore>(
          state_->name, c10::make_intrusive<c10d::TCPStore>(rendezvous.host, store_options));
      auto options = c10d::ProcessGroupGloo::Options::create(transfers);
      options->devices.push_back(
          c10d::ProcessGroupGloo::createDeviceForHostname(rendezvous.host, /*lazyInit=*/false));
      options->threads = 2;
      group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, options);
    } catch (const std::exception& error) {
      rethrow(error.what(), state_->name, "joining", state_->timeout);
    }
    state_->timeout = transfers;
  }

  int rank() const override { return rank_; }
  int world() const override { return world_; }
  const std::string& name() const override { return state_->name; }

  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    NIBBLE_CHECK(out.size() == local.size() * static_cast<size_t>(world_),
                 "all_gather of {} bytes into {}", local.size(), out.size());
    std::vector<at::Tensor> parts;
    parts.reserve(static_cast<size_t>(world_));
    for (int r = 0; r < world_; ++r) {
      parts.push_back(
          bytes_tensor(out.subspan(static_cast<size_t>(r) * local.size(), local.size())));
    }
    std::vector<std::vector<at::Tensor>> outputs = {parts};
    std::vector<at::Tensor> inputs = {bytes_tensor(local)};
    return start("all_gather", Kind::kCollective,
                 [&] { return group_->allgather(outputs, inputs); });
  }

  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    at::Tensor output = bytes_tensor(recv);
    at::Tensor input = bytes_tensor(send);
    std::vector<int64_t> send_splits(send_bytes.begin(), send_bytes.end());
    std::vector<int64_t> recv_splits(recv_bytes.begin(), recv_bytes.end());
    return start("all_to_all", Kind::kCollective,
                 [&] { return group_->alltoall_base(output, input, recv_splits, send_splits); });
  }

  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int tag) override {
    std::vector<at::Tensor> tensors = {bytes_tensor(bytes)};
    return start("send", Kind::kPointToPoint, [&] { return group_->send(tensors, peer, tag); });
  }

  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer, int tag) override {
    std::vector<at::Tensor> tensors = {bytes_tensor(bytes)};
    return start("receive", Kind::kPointToPoint, [&] { return group_->recv(tensors, peer, tag); });
  }

  void abort() noexcept override { state_->live.abort(); }

 private:
  enum class Kind { kCollective, kPointToPoint };

  template <typename Start>
  std::unique_ptr<PendingTransfer> start(const char* operation, Kind kind, Start&& begin) {
    if (state_->live.aborted()) {
      fail(ErrorCode::kUnavailable, "group '{}': {} was aborted", state_->name, operation);
    }
    c10::intrusive_ptr<c10d::Work> work;
    try {
      work = begin();
    } catch (const std::exception& error) {
      rethrow(error.what(), state_->name, operation, state_->timeout);
    }
    return std::make_unique<GlooTransfer>(std::move(work), state_, operation,
                                          kind == Kind::kPointToPoint);
  }

  std::shared_ptr<GroupState> state_;
  int rank_;
  int world_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};

}  // namespace

struct RendezvousServer::Impl {
  c10::intrusive_ptr<c10d::TCPStore> store;
};

RendezvousServer::RendezvousServer(int port) : impl_(std::make_unique<Impl>()) {
  silence_c10d();
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
