// However ranks share a model with adapters, they train it as one rank does, and start from the
// same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/base/file.h"
#include "tests/trainer/lora_trainer.h"
#include "tests/trainer/mesh_member.h"
#include "tests/trainer/oracle_records.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::vector<int32_t> kIds = {5, 9, 200, 31, 77, 13, 2};

void write_floats(const fs::path& path, std::span<const float> values) {
  write_file_atomically(path, {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
}

struct Run {
  std::string model;
  Wire wire;
  Mesh mesh;
  fs::path out;
  fs::path start;  // a checkpoint that is loaded at the end; empty: the run's own
};

// Two updates; what is left is a checkpoint of before, one of after, and log-probabilities.
void train(const Run& run, const MeshMember& member) {
  const TrainerConfig config = lora_config(run.model, "int4_sym7");
  Trainer trainer = member.trainer(config);
  trainer.save(run.out.string() + ".begin", {0, 1, 0});
  auto samples = make_groups(6, 6);
  fill_log_probs(trainer, samples);
  std::vector<float> figures;
  for (int step = 0; step < 2; ++step) {
    const std::vector<SampleGroup> mine = member.share(samples);
    const TrainMetrics metrics = trainer.train(std::span(&mine, 1), step);
    require(step > 0 || metrics.log_prob_diff_max == 0.0, "gap at step 0");
    for (const double value :
         {metrics.loss.loss, metrics.entropy, metrics.kl_reference, metrics.update.grad_norm}) {
      figures.push_back(static_cast<float>(value));
    }
  }
  trainer.save(run.out, {2, 2, 0});
  Trainer again = member.trainer(config);
  again.load(run.start.empty() ? run.out : run.start);
  const auto log_probs = again.log_probs(kIds);
  again.save(run.out.string() + ".again", {2, 2, 0});
  if (member.all->rank() != 0) return;
  write_floats(run.out.string() + ".figures", figures);
  write_floats(run.out.string() + ".logprobs", log_probs);
}

int train_in_children(const Run& run) {
  return run_members(run.wire, run.mesh, [&](const MeshMember& member) { train(run, member); });
}

std::vector<float> read_floats(const fs::path& path) {
  const std::string bytes = read_file(path, 1 << 20);
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

class LoraMesh : public ::testing::TestWithParam<std::tuple<const char*, Wire>> {
 protected:
  void SetUp() override {
    if (std::get<Wire>(GetParam()) == Wire::kGloo) return;
    if (!has_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_P(LoraMesh, AnyMeshTrainsAsOneRankAndResumesAnothersCheckpointToTheBit) {
  const auto [name_of_model, wire] = GetParam();
  const std::string model = name_of_model;
  const double tolerance = wire == Wire::kGloo ? 1e-5 : 2e-2;
  const TempFolder folder;
  const fs::path one = folder.path / "one";
  ASSERT_EQ(train_in_children({model, wire, {1}, one, {}}), 1);
  const auto state_of = [](const std::string& path) {
    return digest_checkpoint(path).state_sha256;
  };
  const TrainerConfig trainer = lora_config(model, "int4_sym7");
  ModelConfig config = parse_model_config(read_hf_config(trainer.model), model);
  config.lora = trainer.lora;
  const ModelSpec spec = make_model_spec(config);
  const ShardLayout layout{&spec.table, trainer.train_plan, Mesh{1}, 0};
  const auto load = [&](const fs::path& path) {
    OptimizerState state(layout);
    load_train_checkpoint(path, layout, state);
    return state;
  };
  const OptimizerState expected = load(one);
  int tried = 0;
  for (const Mesh mesh : {Mesh{2}, Mesh{2, 2, 1}, Mesh{2, 1, 2}, Mesh{4, 2, 1}, Mesh{4, 2, 4},
                          Mesh{2, 1, 1, 2}, Mesh{4, 2, 1, 2}}) {
    if (mesh_problem(config, mesh)) continue;
    ++tried;
    SCOPED_TRACE(fmt::format("{} ranks, tensor {}, expert {}, context {}", mesh.world, mesh.tensor,
                             mesh.expert, mesh.context));
    const fs::path out = folder.path / fmt::format("{}-{}-{}-{}", mesh.world, mesh.tensor,
                                                   mesh.expert, mesh.context);
    ASSERT_EQ(train_in_children({model, wire, mesh, out, one}), mesh.world);
    EXPECT_EQ(state_of(out.string() + ".begin"), state_of(one.string() + ".begin"));
    EXPECT_EQ(state_of(out.string() + ".again"), state_of(one.string()));
    EXPECT_EQ(digest_checkpoint(out.string() + ".again").weights_sha256,
              digest_checkpoint(one).weights_sha256);
    EXPECT_EQ(read_floats(out.string() + ".logprobs"), read_floats(one.string() + ".logprobs"));
    const auto figures = read_floats(out.string() + ".figures");
    const auto want = read_floats(one.string() + ".figures");
    ASSERT_EQ(figures.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(figures[i], want[i], tolerance * (1.0 + std::fabs(want[i]))) << i;
    }
    // Moments tell gradients apart better than masters, which a step moves by a learning rate.
    const OptimizerState state = load(out);
    double apart = 0.0, norm = 0.0;
    for (size_t p = 0; p < expected.m.size(); ++p) {
      for (size_t i = 0; i < expected.m[p].size(); ++i) {
        apart += std::pow(static_cast<double>(state.m[p][i] - expected.m[p][i]), 2);
        norm += std::pow(static_cast<double>(expected.m[p][i]), 2);
      }
    }
    EXPECT_GT(norm, 0.0);
    EXPECT_LE(std::sqrt(apart), 10 * tolerance * std::sqrt(norm));
  }
  EXPECT_GE(tried, 5);
}

INSTANTIATE_TEST_SUITE_P(Models, LoraMesh,
                         ::testing::Combine(::testing::Values("dense_untied", "moe_mixed"),
                                            ::testing::Values(Wire::kGloo, Wire::kNccl)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param)) +
                                  (std::get<1>(param.param) == Wire::kGloo ? "_gloo" : "_nccl");
                         });

}  // namespace
}  // namespace nibble
