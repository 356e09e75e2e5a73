#include <gtest/gtest.h>

#include "core/checkpoint/hf_directory.h"
#include "core/models/weights.h"
#include "trainer/parallel/packed_shards.h"

namespace nibble {
namespace {

struct Model {
  explicit Model(const std::string& name)
      : int4(std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/oracles/models" / name /
             "int4_sym7"),
        table(model_parameters(parse_model_config(int4.config(), name))),
        plan(checkpoint_plan(int4, table)) {}
  // Masters that are `value` everywhere.
  std::vector<Array<float>> masters(const ShardLayout& layout, float value) const {
    std::vector<Array<float>> masters;
    for (int64_t p = 0; p < table.size(); ++p) {
      const std::vector<float> rows(static_cast<size_t>(layout.shard_elements(p)), value);
      masters.emplace_back(std::span<const float>(rows));
    }
    return masters;
  }
  HfDirectory int4;
  ParameterTable table;
  QuantizationPlan plan;
  kernels::Serial serial;
  kernels::CpuWeightKernels kernels{serial};
};

TEST(PackBuffers, TwoAreEnoughWhileOneIsServed) {
  const Model model("dense_untied");
  const ShardLayout layout{&model.table, model.plan, Mesh{1}, 0};
  PackBuffers buffers;
  std::shared_ptr<const PackedShards> served;
  for (int step = 0; step < 5; ++step) {
    auto next = pack_shards(layout, model.masters(layout, 0.5f + static_cast<float>(step)),
                            model.kernels, buffers);
    EXPECT_NE(next, served);
    served = std::move(next);
  }
  EXPECT_EQ(buffers.num_allocated(), 2);
}

TEST(PackBuffers, WhatSomebodyHoldsIsNeverPackedInto) {
  const Model model("moe_norm");
  const ShardLayout layout{&model.table, model.plan, Mesh{2}, 1};
  PackBuffers buffers;
  const auto held = pack_shards(layout, model.masters(layout, 1.0f), model.kernels, buffers);
  PackedShards before;
  before.parameters = held->parameters;
  for (int step = 0; step < 4; ++step) {
    (void)pack_shards(layout, model.masters(layout, 2.0f), model.kernels, buffers);
  }
  for (size_t p = 0; p < before.parameters.size(); ++p) {
    EXPECT_EQ(held->parameters[p].words, before.parameters[p].words);
    EXPECT_EQ(held->parameters[p].scale, before.parameters[p].scale);
    EXPECT_EQ(held->parameters[p].bf16, before.parameters[p].bf16);
  }
  EXPECT_EQ(buffers.num_allocated(), 2);
}

TEST(PackBuffers, RidersStandUnchangedBehindEveryPackingAndCountAsNoChange) {
  const Model model("dense_untied");
  const ShardLayout layout{&model.table, model.plan, Mesh{1}, 0};
  const std::vector<uint16_t> values = {1, 2, 3};
  std::vector<StoredParameter> riders(2);
  riders[0].bf16 = Array<uint16_t>(std::span<const uint16_t>(values));
  PackBuffers buffers({{}, std::move(riders)});
  const auto first = pack_shards(layout, model.masters(layout, 1.0f), model.kernels, buffers);
  const auto second = pack_shards(layout, model.masters(layout, 2.0f), model.kernels, buffers);
  for (const auto& packing : {first, second}) {
    ASSERT_EQ(std::ssize(packing->parameters), model.table.size() + 2);
    const auto riders = std::span(packing->parameters).last(2);
    EXPECT_EQ(riders[0].bf16, Array<uint16_t>(std::span<const uint16_t>(values)));
    EXPECT_TRUE(riders[1].bf16.empty());
  }
  PackBuffers without;
  const auto plain = pack_shards(layout, model.masters(layout, 1.0f), model.kernels, without);
  const PartChanges changes = count_changes(layout, *first, *second, model.kernels).total();
  EXPECT_EQ(changes.bytes, count_changes(layout, *plain, *plain, model.kernels).total().bytes);
}

TEST(PackBuffers, OneThatIsUsedAgainHoldsExactlyTheNewPacking) {
  const Model model("moe_norm");
  const ShardLayout layout{&model.table, model.plan, Mesh{1}, 0};
  PackBuffers buffers;
  (void)pack_shards(layout, model.masters(layout, -3.0f), model.kernels, buffers);
  const auto again = pack_shards(layout, model.masters(layout, 0.25f), model.kernels, buffers);
  PackBuffers fresh_buffers;
  const auto fresh =
      pack_shards(layout, model.masters(layout, 0.25f), model.kernels, fresh_buffers);
  EXPECT_EQ(buffers.num_allocated(), 1);
  for (size_t p = 0; p < fresh->parameters.size(); ++p) {
    EXPECT_EQ(again->parameters[p].words, fresh->parameters[p].words);
    EXPECT_EQ(again->parameters[p].scale, fresh->parameters[p].scale);
    EXPECT_EQ(again->parameters[p].bf16, fresh->parameters[p].bf16);
  }
}

}  // namespace
}  // namespace nibble
