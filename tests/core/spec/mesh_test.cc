#include "core/spec/mesh.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

ModelConfig moe_model() {
  ModelConfig config;
  config.architecture = Architecture::kQwen3Moe;
  config.vocab = 50;
  config.hidden = 64;
  config.intermediate = 96;
  config.num_layers = 2;
  config.num_heads = 8;
  config.num_kv_heads = 4;
  config.head_dim = 32;
  config.qk_norm = true;
  config.moe = {8, 2, 32, true};
  config.layer_is_moe = {true, false};
  return config;
}

TEST(RowShard, PartitionsRowsForAnyWorld) {
  for (int64_t rows : {1, 7, 64, 577}) {
    for (int world : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (int rank = 0; rank < world; ++rank) {
        const RowShard shard = row_shard(rows, rank, world);
        EXPECT_EQ(shard.begin, next);
        next = shard.end;
      }
      EXPECT_EQ(next, rows);
    }
  }
}

TEST(Mesh, EveryRowHasOneOwnerAndEveryRankUsesWhatItsRoleNeeds) {
  const ModelConfig config = moe_model();
  const ParameterTable table = model_parameters(config);
  for (const Mesh mesh : {Mesh{1}, Mesh{3}, Mesh{2, 2, 1}, Mesh{2, 1, 2}, Mesh{8, 4, 8},
                          Mesh{8, 2, 4}, Mesh{4, 4, 2}, Mesh{6, 2, 2}, Mesh{8, 2, 4, 2}}) {
    ASSERT_EQ(mesh_problem(config, mesh), std::nullopt);
    for (int64_t p = 0; p < table.size(); ++p) {
      std::vector<int> owners(static_cast<size_t>(table.at(p).rows), 0);
      std::vector<int> users(owners.size(), 0);
      for (int rank = 0; rank < mesh.world; ++rank) {
        const RowShard used = used_rows(table, p, mesh, rank);
        const RowShard owned = owned_rows(table, p, mesh, rank);
        EXPECT_LE(used.begin, owned.begin);
        EXPECT_LE(owned.end, used.end);
        for (int64_t row = owned.begin; row < owned.end; ++row) ++owners[static_cast<size_t>(row)];
        for (int64_t row = used.begin; row < used.end; ++row) ++users[static_cast<size_t>(row)];
      }
      const ParameterRole role = table.at(p).role;
      const bool is_cut = role == ParameterRole::kAttention || role == ParameterRole::kMlp;
      const int sharing = is_cut ? mesh.tensor : role == ParameterRole::kExpert ? mesh.expert : 1;
      EXPECT_EQ(owners, std::vector<int>(owners.size(), 1)) << table.at(p).name();
      EXPECT_EQ(users, std::vector<int>(users.size(), mesh.world / sharing)) << table.at(p).name();
    }
  }
}

TEST(Mesh, TensorRanksGetWholeHeads) {
  const ParameterTable table = model_parameters(moe_model());
  const Mesh mesh{4, 4, 1};
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(used_rows(table, table.layers[0].q, mesh, rank).begin, rank * 2 * 32);
    EXPECT_EQ(used_rows(table, table.layers[0].k, mesh, rank).begin, rank * 32);
    EXPECT_EQ(used_rows(table, table.layers[0].q_norm, mesh, rank).rows(), 1);
  }
}

TEST(Mesh, SizesThatDoNotFitAreNamed) {
  const ModelConfig config = moe_model();
  const auto problem = [&](const Mesh& mesh) {
    return mesh_problem(config, mesh).value_or("none");
  };
  EXPECT_EQ(problem({4, 3, 1}), "parallel.tensor = 3 does not divide the number of trainers = 4");
  EXPECT_EQ(problem({8, 8, 1}), "parallel.tensor = 8 does not divide num_key_value_heads = 4");
  EXPECT_EQ(problem({8, 1, 3}), "parallel.expert = 3 does not divide the number of trainers = 8");
  EXPECT_EQ(problem({16, 1, 16}), "parallel.expert = 16 does not divide the number of experts = 8");
  ModelConfig dense = config;
  dense.layer_is_moe = {false, false};
  EXPECT_EQ(mesh_problem(dense, {2, 1, 2}).value_or("none"),
            "parallel.expert = 2, but the model has no experts");
}

}  // namespace
}  // namespace nibble
