// However ranks share a critic, its values are the same bits and it learns as on one rank.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/file.h"
#include "tests/trainer/mesh_member.h"
#include "tests/trainer/oracle_records.h"
#include "tests/trainer/tiny_critic.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

TrainerConfig config_of(const std::string& model) {
  TrainerConfig config = gae_config(model);
  config.optimizer.steps_per_rollout = 2;
  return config;
}

std::vector<double> figures_of(const TrainMetrics& m) {
  return {m.critic->value_mean,        m.critic->loss.loss, m.critic->loss.clip_share,
          m.critic->update.grad_norm,  m.loss.loss,         m.update.grad_norm,
          m.critic->explained_variance};
}

// Two rollouts of two updates. The last one has a group, too few for every rank to have one. Then
// another beginning at `start`, whose first figures are of values under the same weights.
void train(const std::string& model, const fs::path& out, const fs::path& start,
           const MeshMember& member) {
  const TrainerConfig config = config_of(model);
  std::vector<double> figures;
  Trainer trainer = member.trainer(config);
  for (int step = 1; step <= 2; ++step) {
    auto samples = parity_groups(6, static_cast<uint32_t>(step));
    auto few = parity_groups(step == 1 ? 4 : 1, static_cast<uint32_t>(10 + step));
    fill_log_probs(trainer, samples);
    fill_log_probs(trainer, few);
    const std::vector<std::vector<SampleGroup>> mine = {member.share(samples), member.share(few)};
    const auto now = figures_of(trainer.train(mine, step));
    figures.insert(figures.end(), now.begin(), now.end());
  }
  trainer.save(out, {2, 2, 0});
  Trainer again = member.trainer(config);
  again.load(start);
  again.save(out.string() + ".again", {2, 2, 0});
  auto samples = parity_groups(5, 9);
  fill_log_probs(again, samples);
  const std::vector<std::vector<SampleGroup>> mine = {member.share(samples), {}};
  const TrainMetrics metrics = again.train(mine, 3);
  figures.push_back(metrics.critic->value_mean);
  figures.push_back(metrics.critic->explained_variance);
  if (member.all->rank() != 0) return;
  write_file_atomically(out.string() + ".figures", {reinterpret_cast<const char*>(figures.data()),
                                                    figures.size() * sizeof(double)});
}

std::vector<double> read_doubles(const fs::path& path) {
  const std::string bytes = read_file(path, 1 << 20);
  std::vector<double> values(bytes.size() / sizeof(double));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

class CriticMesh : public ::testing::TestWithParam<std::tuple<const char*, Wire>> {
 protected:
  void SetUp() override {
    if (std::get<Wire>(GetParam()) == Wire::kGloo) return;
    if (!has_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_P(CriticMesh, AnyMeshLearnsAsOneRankToRoundingAndItsValuesAreTheSame) {
  const auto [name, wire] = GetParam();
  const std::string model = name;
  const double tolerance = wire == Wire::kGloo ? 1e-5 : 2e-2;
  const TempFolder folder;
  const fs::path one = folder.path / "one";
  const auto run = [&, wire = wire](const Mesh& mesh, const fs::path& out) {
    return run_members(wire, mesh,
                       [&](const MeshMember& member) { train(model, out, one, member); });
  };
  ASSERT_EQ(run({1}, one), 1);
  const std::vector<double> want = read_doubles(one.string() + ".figures");
  const ModelConfig body = parse_model_config(read_hf_config(config_of(model).model), model);
  const ModelSpec spec = make_model_spec(value_model(body));
  const ShardLayout layout{&spec.table, plan_bf16(spec.table), Mesh{1}, 0};
  const auto load = [&](const fs::path& path) {
    OptimizerState state(layout);
    EXPECT_TRUE(load_critic_checkpoint(path, layout, state));
    EXPECT_EQ(state.updates, 4);
    return state;
  };
  const OptimizerState expected = load(one);
  int tried = 0;
  for (const Mesh mesh : {Mesh{2}, Mesh{2, 2, 1}, Mesh{2, 1, 2}, Mesh{3}, Mesh{4, 2, 1},
                          Mesh{4, 2, 2}, Mesh{4, 2, 4}, Mesh{2, 1, 1, 2}, Mesh{4, 2, 1, 2}}) {
    if (mesh_problem(body, mesh)) continue;
    ++tried;
    SCOPED_TRACE(fmt::format("{} ranks, tensor {}, expert {}, context {}", mesh.world, mesh.tensor,
                             mesh.expert, mesh.context));
    const fs::path out = folder.path / fmt::format("{}-{}-{}-{}", mesh.world, mesh.tensor,
                                                   mesh.expert, mesh.context);
    ASSERT_EQ(run(mesh, out), mesh.world);
    const std::vector<double> figures = read_doubles(out.string() + ".figures");
    ASSERT_EQ(figures.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      const bool is_of_equal_weights = i + 2 >= want.size();
      const double allowed = is_of_equal_weights ? 1e-9 : 10 * tolerance;
      EXPECT_NEAR(figures[i], want[i], allowed * std::fabs(want[i]) + 1e-3 * allowed)
          << "figure " << i;
    }
    // What one rank wrote is what any ranks go on from.
    EXPECT_EQ(digest_checkpoint(out.string() + ".again").state_sha256,
              digest_checkpoint(one).state_sha256);
    const OptimizerState state = load(out);
    double worst = 0.0, largest = 0.0;
    for (size_t p = 0; p < state.m.size(); ++p) {
      for (size_t i = 0; i < state.m[p].size(); ++i) {
        worst = std::max<double>(worst, std::fabs(state.m[p][i] - expected.m[p][i]));
        largest = std::max<double>(largest, std::fabs(expected.m[p][i]));
      }
    }
    EXPECT_GT(largest, 0.0);
    EXPECT_LT(worst, 10 * tolerance * largest) << "first moments";
  }
  EXPECT_GE(tried, body.num_moe_layers() > 0 ? 9 : 6);
}

INSTANTIATE_TEST_SUITE_P(Models, CriticMesh,
                         ::testing::Combine(::testing::Values("dense_untied", "moe_norm"),
                                            ::testing::Values(Wire::kGloo, Wire::kNccl)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param)) +
                                  (std::get<1>(param.param) == Wire::kGloo ? "_gloo" : "_nccl");
                         });

}  // namespace
}  // namespace nibble
