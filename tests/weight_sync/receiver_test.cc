#include "weight_sync/receiver.h"

#include <gmock/gmock.h>

#include "tests/weight_sync/sync_world.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

Deadline soon() { return Deadline::after(5s); }

// Receives through another transport and lets a test touch what arrived before it is hashed.
class TamperingTransport final : public Transport {
 public:
  using Tamper = std::function<void(std::span<const IncomingEdge>, size_t edge, const Segment&)>;
  TamperingTransport(Transport& inner, Tamper tamper) : inner_(inner), tamper_(std::move(tamper)) {}
  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
            const SentHandler& on_sent, Deadline deadline) override {
    inner_.send(pieces, sizes, on_sent, deadline);
  }
  void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
               const ArrivalHandler& on_arrival, Deadline deadline) override {
    inner_.receive(
        edges, sizes,
        [&](size_t edge, const Segment& segment) {
          tamper_(edges, edge, segment);
          on_arrival(edge, segment);
        },
        deadline);
  }
  void abort() noexcept override { inner_.abort(); }

 private:
  Transport& inner_;
  Tamper tamper_;
};

// A worker that serves version 1, with version 2 published.
class ReceiverTest : public ::testing::Test {
 protected:
  ReceiverTest() : model("llama_smol"), world(model, {2}), receiver(world.receiver()) {
    world.publish(1);
    sync_once(world, *receiver, world.transaction(1));
    world.publish(2);
  }

  // kFailedPrecondition's message; the state must not change.
  std::string refusal(const std::function<void()>& call) {
    const ReceiverState before = receiver->status().state;
    std::string message = "accepted";
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition) << error.what();
      message = error.what();
    }
    EXPECT_EQ(receiver->status().state, before);
    return message;
  }
  void expect_old_version_served() {
    EXPECT_EQ(receiver->status().state, ReceiverState::kIdle);
    EXPECT_EQ(receiver->served().version, 1);
    EXPECT_TRUE(same_bytes(model, *receiver->served().weights, *model.version(1)));
  }
  void expect_next_version_works() {
    EXPECT_EQ(sync_once(world, *receiver, second).version, 2);
    EXPECT_TRUE(same_bytes(model, *receiver->served().weights, *model.version(2)));
    EXPECT_LE(receiver->status().num_buffers, 2);
  }
  std::vector<SenderReport> move(Transport* receiver_end = nullptr) {
    if (receiver_end == nullptr) ends = make_local_transports(2);
    return move_all(world, *receiver, second, ends, receiver_end);
  }
  // Moves version 2 through `tamper` and returns what verify says of it.
  std::string verdict(const TamperingTransport::Tamper& tamper) {
    receiver->reserve(second, world.plan());
    TamperingTransport tampering(*ends.receiver, tamper);
    const auto reports = move(&tampering);
    try {
      receiver->verify(second, reports);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
      return error.what();
    }
    return "verified";
  }

  SyncModel model;
  SyncWorld world;
  std::unique_ptr<WeightReceiver> receiver;
  Transaction second = world.transaction(2);
  LocalTransports ends = make_local_transports(2);
};

TEST_F(ReceiverTest, WalksTheStatesInOrderAndRefusesAnyOther) {
  const auto calls = [&] {
    return std::vector<std::pair<std::string, std::function<void()>>>{
        {"receive", [&] { receiver->receive(second, *ends.receiver, soon()); }},
        {"verify", [&] { receiver->verify(second, {}); }},
        {"prepare", [&] { receiver->prepare(second); }},
        {"commit", [&] { receiver->commit(second); }}};
  };
  const auto expect_refused = [&](const std::vector<size_t>& which) {
    const auto all = calls();
    for (const size_t i : which) EXPECT_THAT(refusal(all[i].second), HasSubstr(all[i].first));
  };
  EXPECT_EQ(world.receiver()->status().state, ReceiverState::kStale);
  EXPECT_EQ(world.receiver()->served().weights, nullptr);
  EXPECT_EQ(receiver->status().state, ReceiverState::kIdle);
  expect_refused({0, 1, 2, 3});
  receiver->reserve(second, world.plan());
  EXPECT_EQ(receiver->status().state, ReceiverState::kReserved);
  expect_refused({1, 2, 3});
  const auto reports = move();
  EXPECT_EQ(receiver->status().state, ReceiverState::kMoving);
  EXPECT_EQ(receiver->status().arrived_bytes, model.manifest.bytes);
  expect_refused({0, 2, 3});
  receiver->verify(second, reports);
  EXPECT_EQ(receiver->status().state, ReceiverState::kVerified);
  expect_refused({0, 3});
  receiver->prepare(second);
  EXPECT_EQ(receiver->status().state, ReceiverState::kPrepared);
  EXPECT_EQ(receiver->served().version, 1) << "until the commit";
  expect_refused({0});
  EXPECT_EQ(receiver->commit(second).version, 2);
  EXPECT_EQ(receiver->status().state, ReceiverState::kIdle);
  EXPECT_FALSE(receiver->status().transaction.has_value());
}

TEST_F(ReceiverTest, RefusesAnotherJobEpochVersionOrPlanByName) {
  const auto reserve = [&](Transaction transaction) {
    return refusal([&] { receiver->reserve(transaction, world.plan(transaction.epoch)); });
  };
  EXPECT_THAT(reserve({"other", 1, 2, second.plan_digest}), HasSubstr("'other'"));
  EXPECT_THAT(reserve(world.transaction(1)), HasSubstr("version 1 is served"));
  EXPECT_THAT(reserve({"job", 1, 2, {1, 2}}), HasSubstr("compare the manifests"));
  EXPECT_THAT(reserve(world.transaction(2, 0)), HasSubstr("epoch 0 is stale"));

  const Transaction later = world.transaction(2, 3);
  receiver->reserve(later, world.plan(3));
  const auto prepare = [&](Transaction transaction) {
    return refusal([&] { receiver->prepare(transaction); });
  };
  EXPECT_THAT(prepare(second), HasSubstr("epoch 1 is stale"));
  EXPECT_THAT(prepare({"job", 4, 2, later.plan_digest}), HasSubstr("began in epoch 3"));
  EXPECT_THAT(prepare({"job", 3, 3, later.plan_digest}), HasSubstr("version 2 is in flight"));
  EXPECT_THAT(prepare({"job", 3, 2, {1, 2}}), HasSubstr("not the reserved plan"));
  EXPECT_THAT(refusal([&] { receiver->abort(second, soon()); }), HasSubstr("stale"));
  receiver->abort(later, soon());
  // An epoch once seen keeps lower ones out, whatever became of its transaction.
  EXPECT_THAT(reserve(second), HasSubstr("epoch 1 is stale, this is epoch 3"));
  EXPECT_EQ(sync_once(world, *receiver, later).version, 2);
}

TEST_F(ReceiverTest, ALaterVersionTakesThePlaceOfOneThatWasLeftBehind) {
  receiver->reserve(second, world.plan());
  receiver->verify(second, move());
  receiver->prepare(second);
  const Transaction third = world.transaction(3, 2);
  world.publish(3);
  receiver->reserve(third, world.plan(2));
  EXPECT_EQ(receiver->status().state, ReceiverState::kReserved);
  EXPECT_THAT(receiver->status().last_failure, HasSubstr("version 2 of epoch 1 was left behind"));
  const Transaction earlier = world.transaction(2, 2);
  EXPECT_THAT(refusal([&] { receiver->reserve(earlier, world.plan(2)); }), HasSubstr("in flight"));
  EXPECT_THAT(refusal([&] { receiver->commit(second); }), HasSubstr("epoch 1 is stale"))
      << "a late commit of what was left behind";
  EXPECT_EQ(receiver->served().version, 1);
  const Transaction again = world.transaction(3, 3);
  receiver->reserve(again, world.plan(3));  // the same version, in a later epoch
  receiver->abort(again, soon());
  EXPECT_EQ(sync_once(world, *receiver, again).version, 3);
  EXPECT_EQ(receiver->status().num_buffers, 2);
}

TEST_F(ReceiverTest, RepeatedMessagesHaveNoFurtherEffect) {
  receiver->reserve(second, world.plan());
  receiver->reserve(second, world.plan());
  const auto reports = move();
  receiver->verify(second, reports);
  receiver->verify(second, {});
  receiver->prepare(second);
  receiver->verify(second, {});
  receiver->prepare(second);
  const auto first_answer = receiver->commit(second);
  const auto repeated = receiver->commit(second);
  EXPECT_EQ(repeated.weights, first_answer.weights);
  EXPECT_EQ(repeated.version, 2);
  // A replay of the whole transaction, message by message.
  EXPECT_THAT(refusal([&] { receiver->reserve(second, world.plan()); }),
              HasSubstr("version 2 is served"));
  EXPECT_THAT(refusal([&] { receiver->receive(second, *ends.receiver, soon()); }),
              HasSubstr("no transaction is in flight"));
  EXPECT_THAT(refusal([&] { receiver->verify(second, reports); }), HasSubstr("no transaction"));
  EXPECT_THAT(refusal([&] { receiver->abort(second, soon()); }), HasSubstr("committed"));
  EXPECT_EQ(receiver->served().version, 2);
  EXPECT_NO_THROW(receiver->abort(world.transaction(9), soon())) << "unknown: aborted already";
}

TEST_F(ReceiverTest, AByteThatChangesInFlightIsDataLossByTensorAndRows) {
  bool injected = false;
  std::string expected;
  const std::string message =
      verdict([&](std::span<const IncomingEdge> edges, size_t edge, const Segment& segment) {
        if (injected || edge != 1 || segment.piece < 5) return;
        injected = true;
        const auto bytes = segment_bytes(Pieces(edges[edge].pieces), segment);
        bytes[bytes.size() / 2] ^= std::byte{0x10};
        const SyncPlan plan = world.plan();
        const Slice& slice = plan.edges[1].slices[static_cast<size_t>(segment.piece)].slice;
        expected = "rows [" + std::to_string(slice.row_begin) + ", " +
                   std::to_string(slice.row_end) + ") of tensor '" +
                   model.manifest.at(slice.tensor).name + "' from sender 1";
      });
  ASSERT_TRUE(injected);
  EXPECT_THAT(message, HasSubstr(expected));
  EXPECT_THAT(receiver->status().last_failure, HasSubstr(expected));
  expect_old_version_served();
  expect_next_version_works();
}

TEST_F(ReceiverTest, EveryByteOfASliceIsGuarded) {
  // Elements that only trade places change the hash, because positions count.
  bool injected = false;
  const std::string message =
      verdict([&](std::span<const IncomingEdge> edges, size_t edge, const Segment& segment) {
        const auto bytes = segment_bytes(Pieces(edges[edge].pieces), segment);
        if (injected || bytes.size() < 16) return;
        for (size_t i = 4; i < bytes.size() && !injected; i += 4) {
          if (std::equal(bytes.begin(), bytes.begin() + 4, bytes.begin() + static_cast<long>(i))) {
            continue;
          }
          std::swap_ranges(bytes.begin(), bytes.begin() + 4, bytes.begin() + static_cast<long>(i));
          injected = true;
        }
      });
  ASSERT_TRUE(injected);
  EXPECT_THAT(message, HasSubstr("other contents"));
  expect_old_version_served();
}

TEST_F(ReceiverTest, ReportsThatMissASenderOrAreAboutAnotherTransactionAreDataLoss) {
  const auto verdict_of = [&](const std::function<void(std::vector<SenderReport>&)>& change) {
    receiver->reserve(second, world.plan());
    auto reports = move();
    change(reports);
    try {
      receiver->verify(second, reports);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
      expect_old_version_served();
      return std::string(error.what());
    }
    receiver->abort(second, soon());
    return std::string("verified");
  };
  EXPECT_EQ(verdict_of([](auto&) {}), "verified");
  EXPECT_THAT(verdict_of([](auto& reports) { reports.pop_back(); }),
              HasSubstr("sender 1 reported 0"));
  EXPECT_THAT(verdict_of([](auto& reports) { reports[0].slices.pop_back(); }),
              HasSubstr("sender 0 reported"));
  EXPECT_THAT(verdict_of([](auto& reports) { reports[1].transaction.version = 1; }),
              HasSubstr("sender 1 sent version 1"));
  EXPECT_THAT(verdict_of([](auto& reports) { reports[1].slices[2].slice.row_begin += 1; }),
              HasSubstr("reports another slice"));
  EXPECT_THAT(verdict_of([](auto& reports) { reports[0].slices[2].hash.high += 1; }),
              HasSubstr(model.manifest.at(world.plan().edges[0].slices[2].slice.tensor).name));
  expect_next_version_works();
}

TEST_F(ReceiverTest, AbortInAnyStateKeepsTheOldVersionAndFreesTheShadow) {
  for (int steps = 1; steps <= 4; ++steps) {
    std::vector<SenderReport> reports;
    receiver->reserve(second, world.plan());
    if (steps > 1) reports = move();
    if (steps > 2) receiver->verify(second, reports);
    if (steps > 3) receiver->prepare(second);
    receiver->abort(second, soon());
    receiver->abort(second, soon());
    expect_old_version_served();
    EXPECT_THAT(refusal([&] { receiver->commit(second); }), HasSubstr("no transaction"));
  }
  expect_next_version_works();
}

TEST_F(ReceiverTest, AbortWhileBytesMoveEndsTheTransferAtOnce) {
  receiver->reserve(second, world.plan());
  std::promise<void> moving;
  bool told = false;
  TamperingTransport signalling(*ends.receiver, [&](auto, size_t, const Segment&) {
    if (!told) moving.set_value();
    told = true;
  });
  // Sender 1 stays silent, so that the receiver cannot finish.
  auto sending = std::async(std::launch::async, [&] {
    return world.senders[0]->move(second, world.plan(), *ends.senders[0], soon());
  });
  auto receiving = std::async(std::launch::async,
                              [&] { receiver->receive(second, signalling, Deadline::after(60s)); });
  ASSERT_EQ(moving.get_future().wait_for(10s), std::future_status::ready);
  EXPECT_EQ(receiver->status().state, ReceiverState::kMoving);
  EXPECT_THAT(refusal([&] { receiver->verify(second, {}); }), HasSubstr("bytes have arrived"));
  receiver->abort(second, soon());
  expect_old_version_served();
  try {
    receiving.get();
    ADD_FAILURE() << "received";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
  }
  EXPECT_THROW(sending.get(), Error);
  expect_next_version_works();
}

TEST_F(ReceiverTest, AbortThatMeetsTheLastByteWinsAndReceiveSaysSo) {
  receiver->reserve(second, world.plan());
  int64_t arrived = 0;
  bool injected = false;
  std::future<void> aborting;
  // The transport completes although it was asked to stop: abort() is called inside its last step.
  class Deaf final : public Transport {
   public:
    Deaf(Transport& inner, std::function<void()> at_end)
        : inner_(inner), at_end_(std::move(at_end)) {}
    void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
              const SentHandler& on_sent, Deadline deadline) override {
      inner_.send(pieces, sizes, on_sent, deadline);
    }
    void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
                 const ArrivalHandler& on_arrival, Deadline deadline) override {
      inner_.receive(edges, sizes, on_arrival, deadline);
      at_end_();
    }
    void abort() noexcept override { aborted.set_value(); }
    std::promise<void> aborted;

   private:
    Transport& inner_;
    std::function<void()> at_end_;
  };
  Deaf* self = nullptr;
  Deaf deaf(*ends.receiver, [&] {
    arrived = receiver->status().arrived_bytes;
    aborting = std::async(std::launch::async, [&] { receiver->abort(second, soon()); });
    injected = self->aborted.get_future().wait_for(10s) == std::future_status::ready;
  });
  self = &deaf;
  EXPECT_THROW(move(&deaf), Error);
  ASSERT_TRUE(injected);
  EXPECT_EQ(arrived, model.manifest.bytes);
  EXPECT_NO_THROW(aborting.get());
  expect_old_version_served();
  expect_next_version_works();
}

TEST_F(ReceiverTest, ASilentSenderIsADeadlineAndTheNextAttemptWorks) {
  receiver->reserve(second, world.plan());
  try {
    receiver->receive(second, *ends.receiver, Deadline::after(30ms));
    ADD_FAILURE() << "nothing was sent";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDeadlineExceeded);
  }
  EXPECT_THAT(receiver->status().last_failure, HasSubstr("sender 0"));
  expect_old_version_served();
  expect_next_version_works();
}

}  // namespace
}  // namespace nibble
