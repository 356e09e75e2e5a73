// A receiver with one weight buffer: the new version overwrites the old one.

#include <gmock/gmock.h>

#include "tests/weight_sync/sync_world.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

// Passes everything on, but breaks off or changes a byte on the way.
class BrokenTransport final : public Transport {
 public:
  enum class Fault { kBreaksOff, kFlipsABit };
  BrokenTransport(Transport& inner, Fault fault) : inner_(inner), fault_(fault) {}
  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
            const SentHandler& on_sent, Deadline deadline) override {
    inner_.send(pieces, sizes, on_sent, deadline);
  }
  void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
               const ArrivalHandler& on_arrival, Deadline deadline) override {
    int64_t arrived = 0;
    inner_.receive(
        edges, sizes,
        [&](size_t edge, const Segment& segment) {
          if (++arrived == 4) {
            if (fault_ == Fault::kBreaksOff) throw Error(ErrorCode::kUnavailable, "it broke off");
            edges[edge]
                .pieces[static_cast<size_t>(segment.piece)][static_cast<size_t>(segment.offset)] ^=
                std::byte{1};
          }
          on_arrival(edge, segment);
        },
        deadline);
  }
  void abort() noexcept override { inner_.abort(); }

 private:
  Transport& inner_;
  const Fault fault_;
};

// An engine that serves version 1 until it is told to let go.
class InPlaceTest : public ::testing::Test {
 protected:
  InPlaceTest() : model("llama_smol"), world(model, {2}) {
    ReceiverOptions options;
    options.release_engine = [this] { release(); };
    receiver = std::make_unique<WeightReceiver>("job", model.spec.table, model.source->plan(),
                                                model.manifest, world.kernels, options);
    publish_and_serve(1);
    world.publish(2);
  }

  void release() {
    ++num_releases;
    if (engine == nullptr) return;
    // Nobody has written to it yet, and nobody else may take it for a version any more.
    EXPECT_TRUE(same_bytes(model, *engine, *model.version(served)));
    EXPECT_EQ(receiver->served().weights, nullptr);
    if (!is_stuck) engine.reset();
  }
  void publish_and_serve(int64_t version, int64_t epoch = 1) {
    world.publish(version);
    engine = sync_once(world, *receiver, world.transaction(version, epoch)).weights;
    served = version;
  }
  void expect_serves(int64_t version, ReceiverState state = ReceiverState::kIdle) {
    EXPECT_EQ(receiver->status().state, state);
    EXPECT_EQ(receiver->served().version, version);
    EXPECT_TRUE(same_bytes(model, *receiver->served().weights, *model.version(version)));
    EXPECT_EQ(receiver->status().num_buffers, 1);
  }
  void expect_serves_nothing(ReceiverState state) {
    EXPECT_EQ(receiver->status().state, state);
    EXPECT_EQ(receiver->status().served_version, 0);
    EXPECT_EQ(receiver->served().weights, nullptr);
    EXPECT_EQ(receiver->served().version, 0);
  }
  // Begins version 2 and moves it, over `fault` if there is one.
  std::vector<SenderReport> move(std::optional<BrokenTransport::Fault> fault = {}) {
    receiver->reserve(second, world.plan(second.epoch));
    LocalTransports ends = make_local_transports(2);
    if (!fault) return move_all(world, *receiver, second, ends);
    BrokenTransport broken(*ends.receiver, *fault);
    return move_all(world, *receiver, second, ends, &broken);
  }
  // Version 1 again, as from a peer after version 2 came to nothing, and then version 3.
  void expect_recovers() {
    engine = sync_once(world, *receiver, world.transaction(1, 5)).weights;
    served = 1;
    expect_serves(1);
    publish_and_serve(3, 5);
    expect_serves(3);
  }

  SyncModel model;
  SyncWorld world;
  std::unique_ptr<WeightReceiver> receiver;
  std::shared_ptr<const ResidentWeights> engine;  // what it multiplies with
  int64_t served = 0;
  int num_releases = 0;
  bool is_stuck = false;
  Transaction second = world.transaction(2);
};

TEST_F(InPlaceTest, ReplacesAVersionInItsOwnBufferAndServesNothingMeanwhile) {
  const StoredParameter* where = &engine->stored(0);
  const int releases_before = num_releases;
  receiver->reserve(second, world.plan());
  expect_serves(1, ReceiverState::kReserved);
  EXPECT_EQ(num_releases, releases_before);
  LocalTransports ends = make_local_transports(2);
  const auto reports = move_all(world, *receiver, second, ends);
  EXPECT_EQ(num_releases, releases_before + 1);
  expect_serves_nothing(ReceiverState::kMoving);
  receiver->verify(second, reports);
  receiver->prepare(second);
  expect_serves_nothing(ReceiverState::kPrepared);
  EXPECT_EQ(&receiver->commit(second).weights->stored(0), where);
  expect_serves(2);
}

TEST_F(InPlaceTest, ATransferThatBreaksOffPoisonsAndALaterOneClears) {
  EXPECT_THROW(move(BrokenTransport::Fault::kBreaksOff), Error);
  expect_serves_nothing(ReceiverState::kPoisoned);
  EXPECT_THAT(receiver->status().last_failure, HasSubstr("broke off"));
  expect_recovers();
}

TEST_F(InPlaceTest, ADamagedByteIsFoundAndPoisons) {
  const auto reports = move(BrokenTransport::Fault::kFlipsABit);
  try {
    receiver->verify(second, reports);
    FAIL() << "the damage was not found";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kDataLoss);
  }
  expect_serves_nothing(ReceiverState::kPoisoned);
  expect_recovers();
}

TEST_F(InPlaceTest, AnAbortBeforeVerifyPoisonsAndAfterItLeavesStale) {
  (void)move();
  receiver->abort(second, Deadline::after(5s));
  expect_serves_nothing(ReceiverState::kPoisoned);
  second = world.transaction(2, 2);
  receiver->verify(second, move());
  receiver->prepare(second);
  receiver->abort(second, Deadline::after(5s));
  expect_serves_nothing(ReceiverState::kStale);
  expect_recovers();
}

TEST_F(InPlaceTest, AnAbortBeforeTheFirstByteLeavesTheVersionServed) {
  const int releases_before = num_releases;
  receiver->reserve(second, world.plan());
  receiver->abort(second, Deadline::after(5s));
  expect_serves(1);
  EXPECT_EQ(num_releases, releases_before);
}

TEST_F(InPlaceTest, WaitsUntilTheLastHolderLetsGo) {
  std::shared_ptr<const ResidentWeights> reader = receiver->served().weights;
  auto lets_go = std::async(std::launch::async, [&] {
    std::this_thread::sleep_for(50ms);
    EXPECT_TRUE(same_bytes(model, *reader, *model.version(1)));
    reader.reset();
  });
  engine = sync_once(world, *receiver, second).weights;
  lets_go.get();
  expect_serves(2);
}

TEST_F(InPlaceTest, AnEngineThatDoesNotLetGoKeepsWholeBytesButIsNotServed) {
  is_stuck = true;
  receiver->reserve(second, world.plan());
  LocalTransports ends = make_local_transports(2);
  try {
    receiver->receive(second, *ends.receiver, Deadline::after(20ms));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted);
    EXPECT_THAT(error.what(), HasSubstr("has not let go"));
  }
  EXPECT_TRUE(same_bytes(model, *engine, *model.version(1)));
  expect_serves_nothing(ReceiverState::kPoisoned);
  engine.reset();
  is_stuck = false;
  expect_recovers();
}

TEST_F(InPlaceTest, VersionsNeverFallAlsoWhenNothingIsServed) {
  engine = sync_once(world, *receiver, second).weights;
  served = 2;
  world.publish(3);
  second = world.transaction(3);
  EXPECT_THROW(move(BrokenTransport::Fault::kBreaksOff), Error);
  EXPECT_THROW(receiver->reserve(world.transaction(1, 2), world.plan(2)), Error);
  // A commit that is heard again must not bring back what was overwritten.
  EXPECT_THROW(receiver->commit(world.transaction(2)), Error);
  expect_serves_nothing(ReceiverState::kPoisoned);
  receiver->reserve(world.transaction(2, 2), world.plan(2));
}

TEST_F(InPlaceTest, AppliesADeltaToTheBufferItself) {
  Transaction delta = world.transaction(2);
  delta.base_version = 1;
  receiver->reserve(delta, world.plan());
  LocalTransports ends = make_local_transports(2);
  const auto reports = move_all(world, *receiver, delta, ends);
  receiver->verify(delta, reports);
  receiver->prepare(delta);
  engine = receiver->commit(delta).weights;
  expect_serves(2);
  // Poisoned, it has no base any more.
  served = 2;
  world.publish(3);
  second = world.transaction(3);
  EXPECT_THROW(move(BrokenTransport::Fault::kBreaksOff), Error);
  world.publish(4);
  Transaction again = world.transaction(4, 2);
  again.base_version = 2;
  EXPECT_THROW(receiver->reserve(again, world.plan(2)), Error);
}

}  // namespace
}  // namespace nibble
