// trainer.recompute leaves the same state as none, to the bit, however ranks share the model.
#include <gtest/gtest.h>

#include "core/base/file.h"
#include "tests/trainer/mesh_member.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct Setting {
  const char* model;
  bool replays_routes;  // R3
};

// Two updates with a reference, written to `out`; the bytes that rank 0 gathered, beside it.
void train(const Setting& setting, Recompute recompute, const fs::path& out,
           const MeshMember& member) {
  TrainerConfig config = make_config(setting.model, Mode::kQat);
  config.recompute = recompute;
  config.algorithm.routing_replay = setting.replays_routes;
  Trainer trainer = member.trainer(config);
  auto samples = make_groups(5, 8);
  if (setting.replays_routes) set_routes(samples, trainer.spec().config, 4);
  GatherBytes gathered;
  for (int step = 0; step < 2; ++step) {
    const auto mine = member.share(samples);
    const TrainMetrics metrics = trainer.train(std::span(&mine, 1), step);
    require(metrics.update.grad_norm > 0.0, "a gradient");
    gathered.quantized += metrics.gathered.quantized;
    gathered.plain += metrics.gathered.plain;
  }
  trainer.save(out, {2, 2, 0});
  if (member.all->rank() != 0) return;
  write_file_atomically(out.string() + ".gathered",
                        fmt::format("{} {}", gathered.quantized, gathered.plain));
}

class TrainerRecompute : public ::testing::TestWithParam<std::tuple<Setting, Wire>> {
 protected:
  void SetUp() override {
    if (std::get<Wire>(GetParam()) == Wire::kNccl && !has_gpu()) {
      GTEST_SKIP() << "no GPU on this machine";
    }
  }
};

TEST_P(TrainerRecompute, LeavesTheSameBitsAndGathersNoMore) {
  const auto [setting, wire] = GetParam();
  std::string name = (fs::temp_directory_path() / "nibble_recompute_XXXXXX").string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const fs::path root = name;
  const ModelConfig model = parse_model_config(
      read_hf_config(make_config(setting.model, Mode::kQat).model), setting.model);
  int tried = 0;
  for (const Mesh mesh :
       {Mesh{1}, Mesh{2}, Mesh{2, 2, 1}, Mesh{2, 1, 2}, Mesh{4, 2, 2}, Mesh{2, 1, 1, 2}}) {
    if (mesh_problem(model, mesh)) continue;
    ++tried;
    SCOPED_TRACE(fmt::format("{} ranks, tensor {}, expert {}, context {}", mesh.world, mesh.tensor,
                             mesh.expert, mesh.context));
    const auto run = [&, &setting = setting, wire = wire](Recompute recompute) {
      const fs::path out =
          root / fmt::format("{}-{}-{}-{}-{}", mesh.world, mesh.tensor, mesh.expert, mesh.context,
                             static_cast<int>(recompute));
      EXPECT_EQ(
          run_members(wire, mesh,
                      [&](const MeshMember& member) { train(setting, recompute, out, member); }),
          mesh.world);
      return std::pair(digest_checkpoint(out).state_sha256,
                       read_file(out.string() + ".gathered", 100));
    };
    const auto want = run(Recompute::kNone);
    EXPECT_EQ(run(Recompute::kSelective), want);
    EXPECT_EQ(run(Recompute::kFull), want);
  }
  EXPECT_GE(tried, model.num_moe_layers() > 0 ? 6 : 4);
  fs::remove_all(root);
}

INSTANTIATE_TEST_SUITE_P(
    Models, TrainerRecompute,
    ::testing::Combine(::testing::Values(Setting{"dense_untied", false}, Setting{"moe_norm", false},
                                         Setting{"moe_norm", true}, Setting{"moe_mixed", true}),
                       ::testing::Values(Wire::kGloo, Wire::kNccl)),
    [](const auto& param) {
      const Setting& setting = std::get<0>(param.param);
      return std::string(setting.model) + (setting.replays_routes ? "_replay" : "") +
             (std::get<1>(param.param) == Wire::kGloo ? "_gloo" : "_nccl");
    });

}  // namespace
}  // namespace nibble
