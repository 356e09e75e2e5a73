#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "core/base/fail.h"
#include "core/comm/process_group.h"
#include "core/comm/reduce.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

struct Member {
  Member(int port, int rank, int world, std::chrono::milliseconds timeout = 20s) {
    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
    group = join_gloo_group({"127.0.0.1", port, "test", timeout}, rank, world);
  }
  std::unique_ptr<RendezvousServer> server;
  std::unique_ptr<ProcessGroup> group;
};

void require(bool condition, const char* what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

TEST(GlooGroup, AllGatherAllToAllAndPointToPointMoveTheRightBytes) {
  const int port = free_port();
  const int good = run_ranks(3, 60s, [port](int rank) {
    Member member(port, rank, 3);
    std::vector<int32_t> local(5, rank + 1);
    std::vector<int32_t> all(15);
    member.group
        ->all_gather(std::as_bytes(std::span(local)), std::as_writable_bytes(std::span(all)))
        ->wait();
    for (int i = 0; i < 15; ++i) require(all[static_cast<size_t>(i)] == i / 5 + 1, "all_gather");

    // Rank r sends r + 1 words to each peer.
    std::vector<int32_t> send(static_cast<size_t>(3 * (rank + 1)));
    std::iota(send.begin(), send.end(), 100 * rank);
    std::vector<int64_t> send_bytes(3, 4 * (rank + 1));
    std::vector<int64_t> recv_bytes = {4, 8, 12};
    std::vector<int32_t> recv(6);
    member.group
        ->all_to_all(std::as_bytes(std::span(send)), send_bytes,
                     std::as_writable_bytes(std::span(recv)), recv_bytes)
        ->wait();
    require(recv[0] == rank && recv[1] == 100 + 2 * rank && recv[5] == 200 + 3 * rank + 2,
            "all_to_all");

    if (rank == 1) {
      std::vector<int32_t> message(1000, 42);
      member.group->send(std::as_bytes(std::span(message)), 2, 7)->wait();
    } else if (rank == 2) {
      std::vector<int32_t> message(1000);
      member.group->receive(std::as_writable_bytes(std::span(message)), 1, 7)->wait();
      require(message[999] == 42, "receive");
    }
    std::vector<double> values = {static_cast<double>(rank), 1.0};
    all_reduce_sum(*member.group, values);
    require(values[0] == 3.0 && values[1] == 3.0, "all_reduce_sum");
  });
  EXPECT_EQ(good, 3);
}

TEST(GlooGroup, ADeadPeerIsATypedErrorWithinTheTimeout) {
  const int port = free_port();
  const int good = run_ranks(2, 30s, [port](int rank) {
    Member member(port, rank, 2, 5s);
    std::byte joined{};  // on both sides
    if (rank == 1) {
      member.group->receive(std::span(&joined, 1), 0, 1)->wait();
      raise(SIGKILL);
    }
    member.group->send(std::span(&joined, 1), 1, 1)->wait();
    std::vector<int32_t> message(1 << 20);
    try {
      member.group->receive(std::as_writable_bytes(std::span(message)), 1, 0)->wait();
    } catch (const Error& error) {
      require(
          error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kDeadlineExceeded,
          "code");
      require(std::string(error.what()).find("'test'") != std::string::npos, "names the group");
      return;
    }
    fail(ErrorCode::kInternal, "received from the dead");
  });
  EXPECT_EQ(good, 1);  // the killed rank does not count
}

TEST(GlooGroup, AMemberSurvivesWritingToAClosedSocket) {
  const int port = free_port();
  const int good = run_ranks(2, 20s, [port](int rank) {
    signal(SIGPIPE, SIG_DFL);
    Member member(port, rank, 2);
    int ends[2];
    require(pipe(ends) == 0 && close(ends[0]) == 0, "pipe");
    const char byte = 0;  // as Gloo writes to a peer that died
    require(write(ends[1], &byte, 1) == -1 && errno == EPIPE, "the write fails");
  });
  EXPECT_EQ(good, 2);
}

TEST(GlooGroup, ASilentPeerIsADeadline) {
  const int port = free_port();
  int over[2];
  ASSERT_EQ(pipe(over), 0);
  const int good = run_ranks(2, 20s, [port, over](int rank) {
    Member member(port, rank, 2, 2s);
    char byte = 0;
    if (rank == 1) {  // silent, and there until the other is done: if it left, that would be told
      require(read(over[0], &byte, 1) == 1, "the other's end");
      return;
    }
    std::vector<int32_t> message(4);
    ErrorCode code = ErrorCode::kInternal;  // nothing was sent
    try {
      member.group->receive(std::as_writable_bytes(std::span(message)), 1, 0)->wait();
    } catch (const Error& error) {
      code = error.code();
    }
    require(write(over[1], &byte, 1) == 1, "write");
    require(code == ErrorCode::kDeadlineExceeded, "no deadline, or another error");
  });
  close(over[0]);
  close(over[1]);
  EXPECT_EQ(good, 2);
}

TEST(GlooGroup, AWaitUnderACallersDeadlineEndsBeforeTheGroupsTimeout) {
  const int port = free_port();
  const int good = run_ranks(2, 20s, [port](int rank) {
    Member member(port, rank, 2, 15s);
    std::vector<int32_t> message(4);
    const auto pending =
        member.group->receive(std::as_writable_bytes(std::span(message)), 1 - rank, 0);
    const Stopwatch watch;
    try {
      pending->wait_until(Deadline::after(rank == 0 ? 300ms : 10s));
    } catch (const Error& error) {
      require(watch.elapsed_ms() < 5000.0, "the caller's deadline holds");
      // The deadline of one rank closes the pair, which the other sees.
      if (rank == 0) require(error.code() == ErrorCode::kDeadlineExceeded, error.what());
      return;
    }
    fail(ErrorCode::kInternal, "nothing was sent");
  });
  EXPECT_EQ(good, 2);
}

TEST(GlooGroup, AbortWakesAWaiterAndRefusesLaterCalls) {
  const int port = free_port();
  const int good = run_ranks(2, 20s, [port](int rank) {
    Member member(port, rank, 2, 15s);
    std::vector<int32_t> message(4);
    const auto bytes = std::as_writable_bytes(std::span(message));
    const auto pending = member.group->receive(bytes, 1 - rank, 0);
    const Stopwatch watch;
    const std::jthread aborter([&] { member.group->abort(); });
    for (int attempt = 0; attempt < 2; ++attempt) {
      try {
        if (attempt == 0) pending->wait();
        if (attempt == 1) member.group->receive(bytes, 1 - rank, 0)->wait();
      } catch (const Error& error) {
        require(error.code() == ErrorCode::kUnavailable, error.what());
        require(std::string(error.what()).find("aborted") != std::string::npos, error.what());
        continue;
      }
      fail(ErrorCode::kInternal, "nothing was sent");
    }
    require(watch.elapsed_ms() < 5000.0, "at once");
  });
  EXPECT_EQ(good, 2);
}

TEST(GlooGroup, AMissingRankIsADeadlineThatNamesTheGroup) {
  const int port = free_port();
  const int good = run_ranks(1, 20s, [port](int rank) {
    try {
      Member member(port, rank, 2, 1s);
    } catch (const Error& error) {
      require(error.code() == ErrorCode::kDeadlineExceeded, error.what());
      return;
    }
    fail(ErrorCode::kInternal, "a group of one rank formed");
  });
  EXPECT_EQ(good, 1);
}

TEST(GlooGroup, AMeetingPointThatIsNotThereIsToldByTheErrorAlone) {
  const int port = free_port();
  const int good = run_ranks(1, 20s, [port](int rank) {
    testing::internal::CaptureStderr();
    std::string told;
    try {
      join_gloo_group({"127.0.0.1", port, "test", 1s}, rank, 2);
    } catch (const Error& error) {
      told = error.what();
    }
    require(told.find("group 'test': joining") == 0, told.c_str());
    const std::string written = testing::internal::GetCapturedStderr();
    require(written.empty(), written.c_str());
  });
  EXPECT_EQ(good, 1);
}

}  // namespace
}  // namespace nibble
