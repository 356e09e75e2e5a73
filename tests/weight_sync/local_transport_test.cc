#include "weight_sync/local_transport.h"

#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "core/base/error.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

void ignore_sent(const Segment&) {}
void ignore_arrival(size_t, const Segment&) {}

ErrorCode code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorCode::kInternal;
}

TEST(LocalTransport, MovesEverySendersPiecesIntoPlace) {
  constexpr int kSenders = 3;
  LocalTransports ends = make_local_transports(kSenders);
  std::vector<std::vector<uint16_t>> sent(kSenders), got(kSenders);
  std::vector<IncomingEdge> edges;
  for (int s = 0; s < kSenders; ++s) {
    auto& source = sent[static_cast<size_t>(s)];
    source.resize(1000 + static_cast<size_t>(s));
    std::iota(source.begin(), source.end(), static_cast<uint16_t>(5000 * s));
    auto& target = got[static_cast<size_t>(s)];
    target.resize(source.size());
    const auto bytes = std::as_writable_bytes(std::span(target));
    edges.push_back({s, {bytes.first(1200), bytes.subspan(1200)}});
  }
  std::vector<std::jthread> threads;
  threads.reserve(kSenders);
  std::array<int64_t, kSenders> sent_bytes{};
  for (int s = 0; s < kSenders; ++s) {
    threads.emplace_back([&, s] {
      const auto i = static_cast<size_t>(s);
      const auto bytes = std::as_bytes(std::span(sent[i]));
      const std::vector<std::span<const std::byte>> pieces = {bytes.first(1200),
                                                              bytes.subspan(1200)};
      ends.senders[i]->send(
          pieces, {256}, [&, i](const Segment& segment) { sent_bytes[i] += segment.bytes; },
          Deadline::after(10s));
    });
  }
  int64_t arrived = 0;
  ends.receiver->receive(
      edges, {256}, [&](size_t, const Segment& segment) { arrived += segment.bytes; },
      Deadline::after(10s));
  threads.clear();
  EXPECT_EQ(got, sent);
  EXPECT_EQ(arrived, 2 * (1000 + 1001 + 1002));
  EXPECT_EQ(sent_bytes[2], 2 * 1002);
}

TEST(LocalTransport, ASilentSenderIsADeadline) {
  LocalTransports ends = make_local_transports(1);
  std::vector<std::byte> memory(64);
  const std::vector<IncomingEdge> edges = {{0, {memory}}};
  EXPECT_EQ(
      code_of([&] { ends.receiver->receive(edges, {64}, ignore_arrival, Deadline::after(20ms)); }),
      ErrorCode::kDeadlineExceeded);
}

TEST(LocalTransport, ASlowReceiverHoldsTheSenderAfterTwoBuckets) {
  LocalTransports ends = make_local_transports(1);
  const std::vector<std::byte> memory(256);
  const std::vector<std::span<const std::byte>> pieces = {memory};
  int sent = 0;
  EXPECT_EQ(code_of([&] {
              ends.senders[0]->send(
                  pieces, {64}, [&](const Segment&) { ++sent; }, Deadline::after(20ms));
            }),
            ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(sent, 2);
}

TEST(LocalTransport, AbortOfOneEndEndsTheOthers) {
  LocalTransports ends = make_local_transports(2);
  std::vector<std::byte> memory(64);
  const std::vector<IncomingEdge> edges = {{0, {memory}}};
  const std::jthread aborter([&] { ends.senders[1]->abort(); });
  EXPECT_EQ(
      code_of([&] { ends.receiver->receive(edges, {64}, ignore_arrival, Deadline::after(60s)); }),
      ErrorCode::kUnavailable);
  const std::vector<std::span<const std::byte>> pieces = {memory};
  EXPECT_EQ(
      code_of([&] { ends.senders[0]->send(pieces, {64}, ignore_sent, Deadline::after(60s)); }),
      ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace nibble
