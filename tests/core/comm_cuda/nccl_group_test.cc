// Several NCCL ranks as processes on one GPU: the right bytes arrive; a killed or stopped peer is a
// typed error within the deadline, and a new group works afterwards.
#include "core/comm_cuda/nccl_group.h"

#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "core/base/array.h"
#include "core/base/fail.h"
#include "core/device/cuda_device.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

bool has_gpu() {
  // In a child: CUDA must not start in the process that forks.
  return run_ranks(1, 60s, [](int) {
           if (ops::num_cuda_devices() == 0) throw std::runtime_error("no GPU");
         }) == 1;
}

struct Member {
  Member(int port, int rank, int world, std::chrono::milliseconds timeout = 30s,
         const std::string& name = "test") {
    share_gpu_between_nccl_ranks(rank);
    ops::use_cuda_device(0);
    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
    group = join_nccl_group({"127.0.0.1", port, name, timeout}, rank, world);
  }
  std::unique_ptr<RendezvousServer> server;
  std::unique_ptr<ProcessGroup> group;
};

void require(bool condition, const char* what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

Array<int32_t> on_gpu(const std::vector<int32_t>& values) {
  return Array<int32_t>(std::span<const int32_t>(values), DeviceKind::kCuda);
}
std::span<std::byte> bytes_of(Array<int32_t>& array) {
  return std::as_writable_bytes(std::span(array.data(), array.size()));
}
std::vector<int32_t> on_host(const Array<int32_t>& array) {
  const Array<int32_t> copy = array.to(DeviceKind::kCpu);
  return {copy.begin(), copy.end()};
}

// Runs `transfer`; true if it failed in a typed way that names the group.
template <typename Transfer>
bool fails(Transfer transfer) {
  try {
    transfer();
  } catch (const Error& error) {
    const bool typed =
        error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kDeadlineExceeded;
    return typed && std::string(error.what()).find("'test") != std::string::npos;
  }
  return false;
}

class NcclGroup : public ::testing::Test {
 protected:
  void SetUp() override {
    static const bool gpu = has_gpu();
    if (!gpu) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_F(NcclGroup, AllGatherAllToAllAndPointToPointMoveTheRightBytes) {
  const int port = free_port();
  const int good = run_ranks(3, 100s, [port](int rank) {
    Member member(port, rank, 3);
    auto local = on_gpu(std::vector<int32_t>(5, rank + 1));
    Array<int32_t> all(15, DeviceKind::kCuda);
    member.group->all_gather(bytes_of(local), bytes_of(all))->wait();
    const auto gathered = on_host(all);
    for (int i = 0; i < 15; ++i) {
      require(gathered[static_cast<size_t>(i)] == i / 5 + 1, "all_gather");
    }
    std::vector<int32_t> values(static_cast<size_t>(3 * (rank + 1)));
    std::iota(values.begin(), values.end(), 100 * rank);
    auto send = on_gpu(values);
    const std::vector<int64_t> send_bytes(3, 4 * (rank + 1));
    const std::vector<int64_t> recv_bytes = {4, 8, 12};
    Array<int32_t> recv(6, DeviceKind::kCuda);
    member.group->all_to_all(bytes_of(send), send_bytes, bytes_of(recv), recv_bytes)->wait();
    const auto got = on_host(recv);
    require(got[0] == rank && got[1] == 100 + 2 * rank && got[5] == 200 + 3 * rank + 2,
            "all_to_all");
    if (rank == 1) {
      auto message = on_gpu(std::vector<int32_t>(1 << 22, 42));
      member.group->send(bytes_of(message), 2, 7)->wait();
    } else if (rank == 2) {
      Array<int32_t> message(1 << 22, DeviceKind::kCuda);
      member.group->receive(bytes_of(message), 1, 7)->wait();
      require(on_host(message)[(1 << 22) - 1] == 42, "receive");
    }
    // Nobody leaves while another still reads.
    member.group->all_gather(bytes_of(local), bytes_of(all))->wait();
  });
  EXPECT_EQ(good, 3);
}

TEST_F(NcclGroup, AKilledPeerInMidSendIsATypedErrorAndTheOthersMeetAgain) {
  const int port = free_port();
  const int good = run_ranks(3, 100s, [port](int rank) {
    Member member(port, rank, 3, 5s);
    auto message = on_gpu(std::vector<int32_t>(64 << 20, rank));
    if (rank == 2) {
      auto pending = member.group->receive(bytes_of(message), 1, 0);
      std::this_thread::sleep_for(50ms);
      raise(SIGKILL);
    }
    if (rank == 1) {
      require(fails([&] { member.group->send(bytes_of(message), 2, 0)->wait(); }),
              "a send to the dead fails");
    }
    member.group.reset();
    const auto again = join_nccl_group({"127.0.0.1", port, "test again", 20s}, rank, 2);
    if (rank == 0) {
      Array<int32_t> word(1, DeviceKind::kCuda);
      again->receive(bytes_of(word), 1, 0)->wait();
      require(on_host(word)[0] == 1, "receive after the failure");
    } else {
      auto word = on_gpu({1});
      again->send(bytes_of(word), 0, 0)->wait();
    }
  });
  EXPECT_EQ(good, 2);  // the killed rank does not count
}

TEST_F(NcclGroup, AStoppedPeerIsADeadline) {
  const int port = free_port();
  const int good = run_ranks(2, 60s, [port](int rank) {
    Member member(port, rank, 2);
    auto message = on_gpu(std::vector<int32_t>(64 << 20, rank));
    if (rank == 1) {
      alarm(25);  // SIGALRM ends a stopped process once it is continued; the parent's limit, else
      auto pending = member.group->receive(bytes_of(message), 0, 0);
      raise(SIGSTOP);
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    require(fails([&] {
              member.group->send(bytes_of(message), 1, 0)->wait_until(Deadline::after(2s));
            }),
            "a send to a stopped peer fails");
    const auto took = std::chrono::steady_clock::now() - start;
    fprintf(stderr, "stopped peer: error after %lld ms\n",
            static_cast<long long>(
                std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
    kill(0, SIGCONT);
  });
  EXPECT_GE(good, 1);
}

TEST_F(NcclGroup, AbortWakesAWaiter) {
  const int port = free_port();
  const int good = run_ranks(2, 60s, [port](int rank) {
    Member member(port, rank, 2);
    Array<int32_t> word(1, DeviceKind::kCuda);
    if (rank == 1) {
      std::this_thread::sleep_for(3s);
      return;
    }
    // The wait may be for the connection (inside receive) or for the bytes.
    std::jthread aborter([&] {
      std::this_thread::sleep_for(200ms);
      member.group->abort();
    });
    require(fails([&] { member.group->receive(bytes_of(word), 1, 0)->wait(); }),
            "the waiter is told");
    require(fails([&] { member.group->receive(bytes_of(word), 1, 0); }), "and later calls too");
  });
  EXPECT_EQ(good, 2);
}

}  // namespace
}  // namespace nibble
