// Ranks of engines of several: each receives its rows of some tensors.

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cstring>

#include "tests/weight_sync/sync_world.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// The shard's rows are those of `want`, and there are no others.
void expect_rows_of(const SyncModel& model, const ResidentWeights& shard,
                    const std::vector<Slice>& slices, const ResidentWeights& want) {
  const auto have = shard_tensors(model.manifest, shard.parameters(), slices);
  const auto whole = replica_tensors(model.manifest, want);
  for (const Slice& slice : slices) {
    const auto t = static_cast<size_t>(slice.tensor);
    const StoredTensor& tensor = model.manifest.at(slice.tensor);
    ASSERT_EQ(std::ssize(have[t].bytes), slice.rows() * tensor.row_bytes());
    ASSERT_EQ(std::memcmp(have[t].bytes.data(),
                          whole[t].bytes.data() + slice.row_begin * tensor.row_bytes(),
                          have[t].bytes.size()),
              0)
        << tensor.name;
  }
  EXPECT_EQ(shard.num_bytes(), slices_bytes(model.manifest, slices));
}

// Trainer and engine meshes, {ranks, tensor, expert}.
using Meshes = std::tuple<std::string, Mesh, Mesh>;
class EngineRanks : public ::testing::TestWithParam<Meshes> {};

TEST_P(EngineRanks, EachRankReceivesItsRowsAndNothingElseTravels) {
  const auto& [name, trainers, engine] = GetParam();
  const SyncModel model(name);
  SyncWorld world(model, trainers);
  world.publish(1);
  world.publish(2);
  int64_t bytes = 0;
  for (int rank = 0; rank < engine.world; ++rank) {
    world.destination = engine_slices(model.manifest, model.spec.table, engine, rank);
    ASSERT_EQ(world.plan().bytes, slices_bytes(model.manifest, world.destination));
    bytes += world.plan().bytes;
    const auto receiver = world.receiver();
    sync_once(world, *receiver, world.transaction(1));
    expect_rows_of(model, *receiver->served().weights, world.destination, *model.version(1));
    // What changed since, and again in place.
    Transaction delta = world.transaction(2);
    delta.base_version = 1;
    sync_once(world, *receiver, delta);
    expect_rows_of(model, *receiver->served().weights, world.destination, *model.version(2));
    ReceiverOptions options;
    options.release_engine = [] {};
    const auto in_place = world.receiver(options);
    sync_once(world, *in_place, world.transaction(1));
    sync_once(world, *in_place, delta);
    expect_rows_of(model, *in_place->served().weights, world.destination, *model.version(2));
    EXPECT_EQ(in_place->status().num_buffers, 1);
  }
  EXPECT_GE(bytes, model.manifest.bytes);
  EXPECT_LE(bytes, engine.world * model.manifest.bytes);
}

TEST_P(EngineRanks, ARankTakesAVersionFromTheSameRankOfAnotherEngine) {
  const auto& [name, trainers, engine] = GetParam();
  const SyncModel model(name);
  SyncWorld world(model, trainers);
  world.publish(1);
  const int rank = engine.world - 1;
  world.destination = engine_slices(model.manifest, model.spec.table, engine, rank);
  const auto peer = world.receiver();
  const ServedWeights served = sync_once(world, *peer, world.transaction(1));

  SyncWorld handover(model, {1});
  handover.destination = world.destination;
  handover.layout.ranks = {world.destination};
  handover.senders[0]->publish(
      1, shard_tensors(model.manifest, served.weights->parameters(), world.destination),
      served.weights);
  const auto receiver = handover.receiver();
  sync_once(handover, *receiver, handover.transaction(1));
  expect_rows_of(model, *receiver->served().weights, world.destination, *model.version(1));
}

TEST_P(EngineRanks, ARankRefusesThePlanOfAnother) {
  const auto& [name, trainers, engine] = GetParam();
  const SyncModel model(name);
  SyncWorld world(model, trainers);
  world.publish(1);
  world.destination = engine_slices(model.manifest, model.spec.table, engine, 0);
  const auto receiver = world.receiver();
  const SyncPlan own = world.plan();
  world.destination = engine_slices(model.manifest, model.spec.table, engine, engine.world - 1);
  if (world.destination == engine_slices(model.manifest, model.spec.table, engine, 0)) return;
  EXPECT_NE(world.plan().digest, own.digest);
  try {
    receiver->reserve(world.transaction(1), own);
    FAIL() << "the plans are not the same";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition);
    EXPECT_THAT(error.what(), HasSubstr("this worker computed"));
  }
}

std::string name_of(const ::testing::TestParamInfo<Meshes>& info) {
  const auto& [name, trainers, engine] = info.param;
  std::string text = name;
  for (const Mesh& mesh : {trainers, engine}) {
    text += fmt::format("_{}t{}e{}", mesh.world, mesh.tensor, mesh.expert);
  }
  return text;
}

INSTANTIATE_TEST_SUITE_P(Layouts, EngineRanks,
                         ::testing::Values(Meshes{"dense_untied", {1}, {2, 2}},
                                           Meshes{"dense_untied", {2}, {2, 2}},
                                           Meshes{"dense_tied", {3}, {2, 2}},
                                           Meshes{"moe_norm", {2, 1, 2}, {2, 1, 2}},
                                           Meshes{"moe_norm", {4, 1, 4}, {2, 2, 2}},
                                           Meshes{"moe_mixed", {4, 2, 2}, {4, 1, 4}},
                                           Meshes{"moe_mixed", {2}, {4, 2, 4}}),
                         name_of);

}  // namespace
}  // namespace nibble
