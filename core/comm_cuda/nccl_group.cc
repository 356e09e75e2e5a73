#include "core/comm_cuda/nccl_group.h"

#include <c10/cuda/CUDAStream.h>
#include <nccl.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <vector>

#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/cuda/device_buffer.h"
#include "core/cuda/event.h"
#include "core/cuda/stream.h"

namespace nibble {
namespace {

constexpr auto kPoll = std::chrono::microseconds(20);
constexpr auto kSpin = std::chrono::milliseconds(2);
constexpr auto kWatchPoll = std::chrono::milliseconds(1);
constexpr auto kAbortTimeout = std::chrono::seconds(10);
constexpr int kExitAfterHungAbort = 70;

// Between two polls. NCCL enqueues a transfer in tens of microseconds, GPUs of a host move one in a
// fraction of a millisecond, and a sleep may take as long: there is none at first.
class Pause {
 public:
  void operator()() const {
    if (patience_.expired()) {
      std::this_thread::sleep_for(kPoll);
    } else {
      std::this_thread::yield();
    }
  }

 private:
  const Deadline patience_ = Deadline::after(kSpin);
};

// What a transfer and its group share; the group may be destroyed first.
class Communicator {
 public:
  Communicator(std::string group_name, std::chrono::milliseconds timeout)
      : name(std::move(group_name)), timeout(timeout) {}
  ~Communicator() {
    give_up();
    const std::lock_guard lock(watch_mutex_);
    if (watcher_) watcher_->request_stop();
  }

  void init(const ncclUniqueId& id, int rank, int world) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t status = ncclCommInitRankConfig(&comm_, world, id, rank, &config);
    settle("joining", status, Deadline::after(timeout));
  }

  // Calls NCCL. Such calls come back before they are done; this returns when they have been
  // enqueued.
  template <typename Call>
  void call(const char* operation, Deadline deadline, Call body) {
    ncclResult_t status;
    {
      const std::lock_guard lock(mutex_);
      if (comm_ == nullptr) fail_aborted(operation);
      status = body(comm_);
    }
    settle(operation, status, deadline);
  }

  // Throws, and gives the communicator up, if a transfer that is not done can no longer succeed.
  void check(const char* operation, Deadline deadline) {
    const ncclResult_t status = state(operation);
    if (status != ncclSuccess && status != ncclInProgress) fail_with(operation, status);
    if (deadline.expired()) {
      give_up();
      fail(ErrorCode::kDeadlineExceeded, "group '{}': {} did not end in time", name, operation);
    }
  }

  // Ends pending transfers on this side; safe from any thread.
  void give_up() noexcept {
    ncclComm_t comm;
    {
      const std::lock_guard lock(mutex_);
      comm = std::exchange(comm_, nullptr);
    }
    if (comm == nullptr) return;
    std::mutex done_mutex;
    std::condition_variable done_changed;
    bool done = false;
    std::jthread aborter([&] {
      (void)ncclCommAbort(comm);
      const std::lock_guard lock(done_mutex);
      done = true;
      done_changed.notify_all();
    });
    std::unique_lock lock(done_mutex);
    if (done_changed.wait_for(lock, kAbortTimeout, [&] { return done; })) return;
    get_logger("nccl")->critical("group '{}': ncclCommAbort did not end; this process ends", name);
    std::_Exit(kExitAfterHungAbort);
  }

  bool is_given_up() const {
    const std::lock_guard lock(mutex_);
    return comm_ == nullptr;
  }
  [[noreturn]] void fail_aborted(const char* operation) const {
    {
      const std::lock_guard lock(watch_mutex_);
      if (failure_) throw Error(*failure_);
    }
    fail(ErrorCode::kUnavailable, "group '{}': {} was aborted", name, operation);
  }

  // Gives the communicator up if a transfer that nobody waits for fails or misses its deadline.
  void watch(CudaEvent done, const char* operation, Deadline deadline) {
    const std::lock_guard lock(watch_mutex_);
    watched_.push_back({std::move(done), operation, deadline});
    watch_changed_.notify_all();
    if (!watcher_) {
      watcher_.emplace([this](const std::stop_token& stop) { watch_transfers(stop); });
    }
  }

  const std::string name;
  const std::chrono::milliseconds timeout;
  const CudaStream stream;

 private:
  ncclResult_t state(const char* operation) {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) fail_aborted(operation);
    ncclResult_t status = ncclSuccess;
    const ncclResult_t query = ncclCommGetAsyncError(comm_, &status);
    return query == ncclSuccess ? status : query;
  }
  void settle(const char* operation, ncclResult_t status, Deadline deadline) {
    Pause pause;
    while (status == ncclInProgress) {
      check(operation, deadline);
      pause();
      status = state(operation);
    }
    if (status != ncclSuccess) fail_with(operation, status);
  }
  [[noreturn]] void fail_with(const char* operation, ncclResult_t status) {
    give_up();
    fail(ErrorCode::kUnavailable, "group '{}': {} failed, a peer may be gone: {}", name, operation,
         ncclGetErrorString(status));
  }

  struct Watched {
    CudaEvent done;
    const char* operation;
    Deadline deadline;
  };

  void watch_transfers(const std::stop_token& stop) {
    std::unique_lock lock(watch_mutex_);
    while (watch_changed_.wait(lock, stop, [this] { return !watched_.empty(); })) {
      Watched& oldest = watched_.front();  // only this thread takes any away
      lock.unlock();
      std::optional<Error> problem;
      try {
        while (!oldest.done.is_reached() && !stop.stop_requested()) {
          check(oldest.operation, oldest.deadline);
          std::this_thread::sleep_for(kWatchPoll);
        }
      } catch (const Error& error) {
        problem = error;
      }
      lock.lock();
      if (problem && !failure_) failure_ = problem;
      watched_.pop_front();
    }
  }

  mutable std::mutex mutex_;
  ncclComm_t comm_ = nullptr;  // guarded by mutex_; null once given up
  mutable std::mutex watch_mutex_;
  std::condition_variable_any watch_changed_;
  std::deque<Watched> watched_;          // guarded by watch_mutex_, like the next
  std::optional<Error> failure_;         // of a transfer that was watched
  std::optional<std::jthread> watcher_;  // last member: it uses the others
};

class NcclTransfer final : public PendingTransfer {
 public:
  NcclTransfer(std::shared_ptr<Communicator> comm, const char* operation)
      : comm_(std::move(comm)), operation_(operation) {
    done_.record(comm_->stream.get());
  }
  void wait() override { wait_until(Deadline::after(comm_->timeout)); }
  void join() override {
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    done_.hold(stream);
    // In a graph it has no time of its own; whoever launches the graph waits for it.
    if (is_captured(stream)) return;
    comm_->watch(std::move(done_), operation_, Deadline::after(comm_->timeout));
  }
  void wait_until(Deadline deadline) override {
    Pause pause;
    while (!done_.is_reached()) {
      comm_->check(operation_, deadline);
      pause();
    }
    // An aborted kernel ends too.
    if (comm_->is_given_up()) comm_->fail_aborted(operation_);
  }

 private:
  std::shared_ptr<Communicator> comm_;  // shared with the group
  CudaEvent done_;
  const char* operation_;
};

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(const Rendezvous& at, int rank, int world)
      : comm_(std::make_shared<Communicator>(at.group_name, at.timeout)),
        rank_(rank),
        world_(world) {
    comm_->init(exchange_id(at, rank), rank, world);
    connect_peers();
  }

  int rank() const override { return rank_; }
  int world() const override { return world_; }
  const std::string& name() const override { return comm_->name; }

  std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                              std::span<std::byte> out) override {
    NIBBLE_CHECK(out.size() == local.size() * static_cast<size_t>(world_),
                 "all_gather of {} bytes into {}", local.size(), out.size());
    return enqueue("all_gather", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllGather(local.data(), out.data(), local.size(), ncclUint8, comm, stream);
    });
  }

  std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                              std::span<const int64_t> send_bytes,
                                              std::span<std::byte> recv,
                                              std::span<const int64_t> recv_bytes) override {
    return enqueue("all_to_all", [&](ncclComm_t comm, cudaStream_t stream) {
      const std::byte* from = send.data();
      std::byte* to = recv.data();
      ncclResult_t status = ncclGroupStart();
      for (int r = 0; r < world_ && status == ncclSuccess; ++r) {
        const auto out = static_cast<size_t>(send_bytes[static_cast<size_t>(r)]);
        const auto in = static_cast<size_t>(recv_bytes[static_cast<size_t>(r)]);
        if (out > 0) status = accepted(ncclSend(from, out, ncclUint8, r, comm, stream));
        if (in > 0 && status == ncclSuccess) {
          status = accepted(ncclRecv(to, in, ncclUint8, r, comm, stream));
        }
        from += out;
        to += in;
      }
      const ncclResult_t end = ncclGroupEnd();
      return status == ncclSuccess ? end : status;
    });
  }

  std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                        int /*tag*/) override {
    return enqueue("send", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclSend(bytes.data(), bytes.size(), ncclUint8, peer, comm, stream);
    });
  }
  std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer,
                                           int /*tag*/) override {
    return enqueue("receive", [&](ncclComm_t comm, cudaStream_t stream) {
      return ncclRecv(bytes.data(), bytes.size(), ncclUint8, peer, comm, stream);
    });
  }
  void check() const override {
    if (comm_->is_given_up()) comm_->fail_aborted("a transfer");
  }
  void abort() noexcept override { comm_->give_up(); }

 private:
  static ncclResult_t accepted(ncclResult_t status) {
    return status == ncclInProgress ? ncclSuccess : status;
  }

  // NCCL connects a pair of ranks at its first transfer, which a dead peer would hold up for the
  // group's whole timeout, whatever the caller's deadline. So every pair has one while all are
  // here.
  void connect_peers() {
    const DeviceBuffer<std::byte> bytes(2 * world_);
    const std::vector<int64_t> one(static_cast<size_t>(world_), 1);
    const auto count = static_cast<size_t>(world_);
    all_to_all({bytes.data(), count}, one, {bytes.data() + count, count}, one)->wait();
  }

  static ncclUniqueId exchange_id(const Rendezvous& at, int rank) {
    ncclUniqueId id{};
    try {
      c10d::TCPStoreOptions options;
      options.port = static_cast<uint16_t>(at.port);
      options.timeout = at.timeout;
      options.waitWorkers = false;
      c10d::PrefixStore store(at.group_name, c10::make_intrusive<c10d::TCPStore>(at.host, options));
      if (rank == 0) {
        NIBBLE_CHECK(ncclGetUniqueId(&id) == ncclSuccess, "no NCCL id for '{}'", at.group_name);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&id);
        store.set("nccl_id", std::vector<uint8_t>(bytes, bytes + sizeof id));
      } else {
        const std::vector<uint8_t> bytes = store.get("nccl_id");
        NIBBLE_CHECK(bytes.size() == sizeof id, "an NCCL id of {} bytes", bytes.size());
        std::memcpy(&id, bytes.data(), sizeof id);
      }
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      const std::string what = error.what();
      fail(ErrorCode::kDeadlineExceeded, "group '{}': the ranks did not meet within {} ms: {}",
           at.group_name, at.timeout.count(), what.substr(0, what.find('\n')));
    }
    return id;
  }

  template <typename Body>
  std::unique_ptr<PendingTransfer> enqueue(const char* operation, Body body) {
    const cudaStream_t stream = comm_->stream.get();
    ready_.record(c10::cuda::getCurrentCUDAStream());
    ready_.hold(stream);
    comm_->call(operation, Deadline::after(comm_->timeout),
                [&](ncclComm_t comm) { return body(comm, stream); });
    return std::make_unique<NcclTransfer>(comm_, operation);
  }

  std::shared_ptr<Communicator> comm_;  // shared with transfers in flight
  const int rank_;
  const int world_;
  CudaEvent ready_;
};

}  // namespace

std::unique_ptr<ProcessGroup> join_nccl_group(const Rendezvous& rendezvous, int rank, int world) {
  return std::make_unique<NcclGroup>(rendezvous, rank, world);
}

void share_gpu_between_nccl_ranks(int process) {
  set_env("NCCL_HOSTID", "nibble-process-" + std::to_string(process));
  for (const char* off : {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"}) {
    set_env(off, "1");
  }
  set_env("NCCL_SOCKET_IFNAME", "lo");
  set_env("NCCL_NVLS_ENABLE", "0");
}

}  // namespace nibble
