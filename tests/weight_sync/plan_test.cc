#include "weight_sync/plan.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "core/base/error.h"
#include "core/spec/joint_parameters.h"
#include "tests/weight_sync/random_model.h"
#include "weight_sync/bucket_plan.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kMembers = {"trainer/0", "rollout/0"};

bool holds(const Layout& layout, int rank, int64_t tensor, int64_t row) {
  const auto& slices = layout.ranks[static_cast<size_t>(rank)];
  return std::any_of(slices.begin(), slices.end(), [&](const Slice& s) {
    return s.tensor == tensor && s.row_begin <= row && row < s.row_end;
  });
}

// Row by row, without the planner's intervals.
void expect_each_row_once(const Manifest& manifest, const Layout& senders,
                          const std::vector<Slice>& destination, const SyncPlan& plan) {
  std::vector<std::vector<int>> wanted, written;
  for (const StoredTensor& tensor : manifest.tensors) {
    wanted.emplace_back(static_cast<size_t>(tensor.rows), 0);
    written.emplace_back(static_cast<size_t>(tensor.rows), 0);
  }
  for (const Slice& s : destination) {
    for (int64_t row = s.row_begin; row < s.row_end; ++row) {
      ++wanted[static_cast<size_t>(s.tensor)][static_cast<size_t>(row)];
    }
  }
  int64_t bytes = 0;
  for (const Edge& edge : plan.edges) {
    int64_t edge_bytes = 0;
    for (const PlannedSlice& planned : edge.slices) {
      const Slice& s = planned.slice;
      const int64_t row_bytes = manifest.at(s.tensor).row_bytes();
      EXPECT_EQ(planned.byte_begin, s.row_begin * row_bytes);
      EXPECT_EQ(planned.byte_end, s.row_end * row_bytes);
      edge_bytes += planned.bytes();
      for (int64_t row = s.row_begin; row < s.row_end; ++row) {
        ASSERT_TRUE(holds(senders, edge.sender, s.tensor, row));
        ++written[static_cast<size_t>(s.tensor)][static_cast<size_t>(row)];
      }
    }
    EXPECT_EQ(edge.bytes, edge_bytes);
    bytes += edge_bytes;
  }
  EXPECT_EQ(plan.bytes, bytes);
  EXPECT_EQ(written, wanted);
}

TEST(MakePlan, SendsEveryDestinationRowOnceFromASenderThatHoldsIt) {
  RandomModels random(1);
  for (int round = 0; round < 150; ++round) {
    const RandomModel model = random.model();
    const Manifest& manifest = model.manifest;
    const int world = 1 + round % 5;
    const Layout senders =
        round % 3 == 0 ? random.layout(manifest, world)
                       : trainer_layout(manifest, model.table, random.mesh(model.config, 8));
    std::vector<Slice> destination = replica_slices(manifest);
    if (round % 2 == 1) {  // one rank of a receiver that is sharded too
      destination = owned_slices(manifest, model.table, Mesh{3}, round / 2 % 3);
    }
    const SyncPlan plan = make_plan({manifest, senders, destination, 1, kMembers});
    expect_each_row_once(manifest, senders, destination, plan);
    if (HasFatalFailure()) return;
  }
}

// Bytes of the rows that `mesh` lets `rank` multiply with, from the parameters alone.
int64_t packed_shard_bytes(const RandomModel& model, const Mesh& mesh, int rank) {
  int64_t bytes = 0;
  for (const StoredTensor& tensor : model.manifest.tensors) {
    bytes += used_rows(model.table, tensor.parameter, mesh, rank).rows() * tensor.row_bytes();
  }
  return bytes;
}

TEST(EngineLayout, EachRankGetsItsShardOnceFromAnyTrainersAndNothingElse) {
  RandomModels random(11);
  for (int round = 0; round < 150; ++round) {
    const RandomModel model = random.model();
    const Manifest& manifest = model.manifest;
    const Layout senders = trainer_layout(manifest, model.table, random.mesh(model.config, 8));
    const Mesh mesh = random.mesh(model.config, 8);
    const Layout engine = engine_layout(manifest, model.table, mesh);
    ASSERT_EQ(engine.world(), mesh.world);
    for (int rank = 0; rank < mesh.world; ++rank) {
      const std::vector<Slice>& shard = engine.ranks[static_cast<size_t>(rank)];
      EXPECT_EQ(shard, engine_slices(manifest, model.table, mesh, rank));
      const SyncPlan plan = make_plan({manifest, senders, shard, 1, kMembers});
      expect_each_row_once(manifest, senders, shard, plan);
      std::vector<Slice> written;
      for (const Edge& edge : plan.edges) {
        for (const PlannedSlice& planned : edge.slices) written.push_back(planned.slice);
      }
      EXPECT_EQ(coverage_problem(manifest, written, shard).value_or(""), "");
      EXPECT_EQ(plan.bytes, packed_shard_bytes(model, mesh, rank));
      EXPECT_EQ(plan.bytes, slices_bytes(manifest, shard));
      if (HasFailure()) return;
    }
  }
}

TEST(EngineLayout, RanksTogetherHoldTheModelAndCopiesOnlyOfWhatAllNeed) {
  RandomModels random(12);
  for (int round = 0; round < 150; ++round) {
    const RandomModel model = random.model();
    const Mesh mesh = random.mesh(model.config, 8);
    const Layout engine = engine_layout(model.manifest, model.table, mesh);
    for (int64_t t = 0; t < model.manifest.size(); ++t) {
      const StoredTensor& tensor = model.manifest.at(t);
      const ParameterSpec& parameter = model.table.at(tensor.parameter);
      const bool by_tensor =
          parameter.role == ParameterRole::kAttention || parameter.role == ParameterRole::kMlp;
      const int parts = by_tensor                                  ? mesh.tensor
                        : parameter.role == ParameterRole::kExpert ? mesh.expert
                                                                   : 1;
      for (int64_t row = 0; row < tensor.rows; ++row) {
        int holders = 0;
        for (int rank = 0; rank < mesh.world; ++rank) holders += holds(engine, rank, t, row);
        ASSERT_EQ(holders, mesh.world / parts) << tensor.name << " row " << row;
      }
    }
  }
}

TEST(EngineLayout, ADraftModelIsTheFirstRanksOfSendersAndOfEngines) {
  RandomModels random(17);
  for (int round = 0; round < 20; ++round) {
    const RandomModel model = random.model(), small = random.model();
    const ModelConfig& config = small.config;
    const DraftPart draft{{}, config, plan_bf16(model_parameters(config))};
    const JointParameters joint = join_parameters(model.table, plan_bf16(model.table), &draft);
    const Manifest manifest = make_manifest(joint.table, joint.plan);
    const Mesh trainers = random.mesh(model.config, 8), engine = random.mesh(model.config, 8);
    const Layout senders = trainer_layout(manifest, joint.table, trainers);
    for (int rank = 0; rank < engine.world; ++rank) {
      const auto destination = engine_slices(manifest, joint.table, engine, rank);
      // Throws unless somebody holds each row.
      const SyncPlan plan = make_plan({manifest, senders, destination, 1, kMembers});
      int64_t draft_bytes = 0;
      for (const Edge& edge : plan.edges) {
        for (const PlannedSlice& slice : edge.slices) {
          const int64_t parameter = manifest.at(slice.slice.tensor).parameter;
          if (!joint.table.at(parameter).is_draft) continue;
          ASSERT_EQ(edge.sender, 0);
          draft_bytes += slice.bytes();
        }
      }
      const int64_t whole = make_manifest(model_parameters(config), draft.plan).bytes;
      ASSERT_EQ(draft_bytes, rank == 0 ? whole : 0);
    }
  }
}

TEST(EngineLayout, NoSlicePartsAGroupFromItsScale) {
  RandomModels random(13);
  for (int round = 0; round < 100; ++round) {
    const RandomModel model = random.model();
    const Manifest& manifest = model.manifest;
    const Mesh mesh = random.mesh(model.config, 8);
    for (const std::vector<Slice>& shard : engine_layout(manifest, model.table, mesh).ranks) {
      for (size_t i = 0; i < shard.size(); ++i) {
        const StoredTensor& words = manifest.at(shard[i].tensor);
        if (words.kind != StoredKind::kWords) continue;
        ASSERT_LT(i + 1, shard.size());
        const StoredTensor& scales = manifest.at(shard[i + 1].tensor);
        ASSERT_EQ(scales.kind, StoredKind::kScale);
        ASSERT_EQ(scales.parameter, words.parameter);
        EXPECT_EQ(shard[i + 1].row_begin, shard[i].row_begin);
        EXPECT_EQ(shard[i + 1].row_end, shard[i].row_end);
        // Whole groups in a row, so whole rows hold whole groups.
        EXPECT_EQ(words.row_elements * 8, scales.row_elements * manifest.format.group_size);
      }
    }
  }
}

TEST(MakePlan, ShipsThePackedBytesAndNothingElse) {
  ModelConfig config;
  config.vocab = 64;
  config.hidden = config.intermediate = 256;
  config.num_layers = 2;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 128;
  config.tied_embeddings = true;
  config.layer_is_moe = {false, false};
  const ParameterTable table = model_parameters(config);
  const Manifest manifest =
      make_manifest(table, plan_quantization(table, QuantTargets::kLinear, 4, 128));
  const SyncPlan plan = make_plan(
      {manifest, trainer_layout(manifest, table, {2}), replica_slices(manifest), 1, kMembers});
  const int64_t quantized = 2 * 7 * 256 * 256;  // two layers of seven matrices
  const int64_t plain = 64 * 256 + 5 * 256;     // embedding, norms
  EXPECT_EQ(plan.bytes, quantized / 2 + quantized / 128 * 2 + plain * 2);
}

TEST(MakePlan, EvensOutTheLoadsOfSendersThatAllHoldEverything) {
  RandomModels random(2);
  for (int world = 2; world <= 5; ++world) {
    const RandomModel model = random.model();
    const Manifest& manifest = model.manifest;
    Layout senders;
    senders.ranks.assign(static_cast<size_t>(world), replica_slices(manifest));
    const SyncPlan plan = make_plan({manifest, senders, replica_slices(manifest), 1, kMembers});
    ASSERT_EQ(static_cast<int>(plan.edges.size()), world);
    int64_t row_bytes = 0;
    for (const StoredTensor& t : manifest.tensors) row_bytes = std::max(row_bytes, t.row_bytes());
    const auto [least, most] =
        std::minmax_element(plan.edges.begin(), plan.edges.end(),
                            [](const Edge& a, const Edge& b) { return a.bytes < b.bytes; });
    EXPECT_LE(most->bytes - least->bytes, plan.bytes / world / 20 + row_bytes);
  }
}

TEST(MakePlan, DigestChangesWithEveryInputAndOnlyThen) {
  RandomModels random(3);
  const RandomModel model = random.model();
  const Manifest& manifest = model.manifest;
  Manifest other = manifest;
  other.digest.low ^= 1;
  const Layout two = trainer_layout(manifest, model.table, {2});
  const Layout three = trainer_layout(manifest, model.table, {3});
  const auto all = replica_slices(manifest);
  const std::vector<Slice> part(all.begin(), all.end() - 1);
  const std::vector<std::string> renamed = {"trainer/0", "rollout/1"};
  const std::vector<std::string> joined = {"trainer/0rollout/0"};
  const SyncPlan plan = make_plan({manifest, two, all, 1, kMembers});
  EXPECT_EQ(make_plan({manifest, two, all, 1, kMembers}).digest, plan.digest);
  const std::vector<Digest> digests = {
      plan.digest,
      make_plan({other, two, all, 1, kMembers}).digest,
      make_plan({manifest, three, all, 1, kMembers}).digest,
      make_plan({manifest, two, part, 1, kMembers}).digest,
      make_plan({manifest, two, all, 2, kMembers}).digest,
      make_plan({manifest, two, all, 1, renamed}).digest,
      make_plan({manifest, two, all, 1, joined}).digest,
      make_plan({manifest, two, all, 1, kMembers, {4096}}).digest,
      make_plan({manifest, two, all, 1, kMembers, {8 << 20, 4096}}).digest,
  };
  std::set<std::string> distinct;
  for (const Digest& digest : digests) distinct.insert(digest_hex(digest));
  EXPECT_EQ(distinct.size(), digests.size());
}

std::string refusal(const PlanInputs& inputs) {
  try {
    make_plan(inputs);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "accepted";
}

TEST(MakePlan, RefusesLayoutsThatCannotWorkByTensorAndRows) {
  RandomModels random(4);
  const RandomModel model = random.model();
  const Manifest& manifest = model.manifest;
  const auto all = replica_slices(manifest);
  const std::string& name = manifest.at(0).name;
  const int64_t rows = manifest.at(0).rows;
  Layout gap = trainer_layout(manifest, model.table, {2});
  gap.ranks[1][0].row_begin += 1;
  const int64_t half = trainer_layout(manifest, model.table, {2}).ranks[1][0].row_begin;
  EXPECT_THAT(refusal({manifest, gap, all, 1, kMembers}),
              HasSubstr("no sender holds rows [" + std::to_string(half) + ", " +
                        std::to_string(half + 1) + ") of tensor '" + name + "'"));
  auto twice = all;
  twice.push_back({0, 1, 2});
  EXPECT_THAT(refusal({manifest, trainer_layout(manifest, model.table, {2}), twice, 1, kMembers}),
              HasSubstr("rows [1, 2) of tensor '" + name + "' twice"));
  auto outside = all;
  outside[0].row_end = rows + 1;
  EXPECT_THAT(refusal({manifest, trainer_layout(manifest, model.table, {2}), outside, 1, kMembers}),
              HasSubstr("'" + name + "', which has " + std::to_string(rows)));
  Layout unknown = trainer_layout(manifest, model.table, {2});
  unknown.ranks[0].push_back({manifest.size(), 0, 1});
  EXPECT_THAT(refusal({manifest, unknown, all, 1, kMembers}), HasSubstr("sender 0 lists tensor"));
  EXPECT_THAT(refusal({manifest, gap, all, 1, kMembers, {6}}), HasSubstr("bucket_bytes is 6"));
}

TEST(CoverageProblem, NamesRowsThatAreMissingRepeatedOrForeign) {
  RandomModels random(5);
  const RandomModel model = random.model();
  const Manifest& manifest = model.manifest;
  const auto all = replica_slices(manifest);
  const std::string& name = manifest.at(0).name;
  EXPECT_EQ(coverage_problem(manifest, all, all), std::nullopt);
  auto shuffled = all;
  shuffled[0].row_end = 2;
  shuffled.push_back({0, 2, manifest.at(0).rows});
  EXPECT_EQ(coverage_problem(manifest, shuffled, all), std::nullopt);
  auto missing = shuffled;
  missing[0].row_end = 1;
  EXPECT_EQ(coverage_problem(manifest, missing, all).value_or(""),
            "rows [1, 2) of tensor '" + name + "' were not written");
  auto repeated = all;
  repeated.push_back({0, 0, 1});
  EXPECT_EQ(coverage_problem(manifest, repeated, all).value_or(""),
            "rows [0, 1) of tensor '" + name + "' were written 2 times");
  const std::vector<Slice> others(all.begin() + 1, all.end());
  EXPECT_THAT(coverage_problem(manifest, all, others).value_or(""),
              HasSubstr("belong to another worker"));
}

TEST(PlanBuckets, CoverEveryByteOnceWithinTheLimitAndNeverSplitAnElement) {
  RandomModels random(6);
  for (int round = 0; round < 200; ++round) {
    const int64_t limit = 4 * random.draw(1, 300);
    std::vector<int64_t> pieces;
    for (int64_t i = random.draw(0, 30); i > 0; --i) pieces.push_back(2 * random.draw(1, 1000));
    std::vector<int64_t> covered(pieces.size(), 0);
    for (const Bucket& bucket : plan_buckets(std::span<const int64_t>(pieces), {limit})) {
      EXPECT_LE(bucket.bytes, limit);
      EXPECT_FALSE(bucket.segments.empty());
      int64_t bytes = 0;
      for (const Segment& segment : bucket.segments) {
        EXPECT_EQ(segment.offset, covered[static_cast<size_t>(segment.piece)]) << "in order";
        EXPECT_EQ(segment.offset % 4, 0);
        covered[static_cast<size_t>(segment.piece)] += segment.bytes;
        bytes += segment.bytes;
      }
      EXPECT_EQ(bucket.bytes, bytes);
    }
    EXPECT_EQ(covered, pieces);
  }
}

TEST(PlanBuckets, LargePiecesTravelAloneAndSmallOnesTogether) {
  const std::vector<int64_t> pieces = {100, 1 << 20, 200, 3 << 20, 300};
  const auto buckets = plan_buckets(std::span<const int64_t>(pieces), {2 << 20});
  ASSERT_EQ(buckets.size(), 4u);
  EXPECT_FALSE(buckets[0].is_packed());
  EXPECT_EQ(buckets[1].bytes, 2 << 20);
  EXPECT_EQ(buckets[3].segments.size(), 3u);
  EXPECT_EQ(buckets[3].bytes, 600);
}

}  // namespace
}  // namespace nibble
