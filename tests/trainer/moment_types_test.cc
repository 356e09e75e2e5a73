// What optimizer.state and optimizer.mapped_in may change, and what not.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/trainer/oracle_records.h"
#include "tests/trainer/tiny_trainer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

TrainerConfig sft_config(const std::string& model, MomentType state, const fs::path& mapped_in) {
  TrainerConfig config = make_config(model, Mode::kQat);
  config.algorithm.loss.objective = PolicyObjective::kSft;
  config.algorithm.loss.aggregation = Aggregation::kTokenMean;
  config.algorithm.reference = ReferenceMode::kNever;
  config.algorithm.loss.kl_coef = 0.0;
  config.optimizer.beta2 = 0.999;
  config.optimizer.state = state;
  config.optimizer.mapped_in = mapped_in;
  config.seed = 5;
  return config;
}

struct State {
  MomentType type;
  bool is_mapped;
};

class TrainerState : public ::testing::TestWithParam<std::tuple<std::string, State>> {
 protected:
  TrainerConfig config() const {
    const auto& [model, state] = GetParam();
    return sft_config(model, state.type, state.is_mapped ? mapped_.path : fs::path());
  }
  const TempFolder folder_, mapped_;
  const std::unique_ptr<ProcessGroup> group_ = solo_group("t");
  const MeshGroups groups_{*group_};
  const std::vector<TokenRecord> records_ = oracle_records(std::get<0>(GetParam()));
};

TEST_P(TrainerState, ResumingGivesTheBitsOfGoingOn) {
  Trainer whole(config(), groups_);
  for (int step = 0; step < 2; ++step) whole.train_records(pointers(records_));
  whole.save(folder_.path / "half", {2, 0, 0});
  for (int step = 0; step < 2; ++step) whole.train_records(pointers(records_));
  whole.save(folder_.path / "whole", {4, 0, 0});
  Trainer resumed(config(), groups_);
  resumed.load(folder_.path / "half");
  resumed.save(folder_.path / "again", {2, 0, 0});
  for (int step = 0; step < 2; ++step) resumed.train_records(pointers(records_));
  resumed.save(folder_.path / "resumed", {4, 0, 0});
  const auto digest = [&](const char* name) {
    return digest_checkpoint(folder_.path / name).state_sha256;
  };
  EXPECT_EQ(digest("again"), digest("half"));
  EXPECT_EQ(digest("resumed"), digest("whole"));
  EXPECT_NE(digest("resumed"), digest("half"));
  EXPECT_TRUE(fs::is_empty(mapped_.path));
}

TEST_P(TrainerState, ACheckpointLoadsUnderEverySetting) {
  Trainer trainer(config(), groups_);
  trainer.train_records(pointers(records_));
  trainer.save(folder_.path / "step", {1, 0, 0});
  const std::string& model = std::get<0>(GetParam());
  for (const MomentType other : {MomentType::kFp32, MomentType::kBf16}) {
    Trainer next(sft_config(model, other, {}), groups_);
    next.load(folder_.path / "step");
    next.save(folder_.path / "next", {1, 0, 0});
    const bool is_exact =
        other == MomentType::kFp32 || std::get<1>(GetParam()).type == MomentType::kBf16;
    EXPECT_EQ(digest_checkpoint(folder_.path / "next").state_sha256 ==
                  digest_checkpoint(folder_.path / "step").state_sha256,
              is_exact);
    EXPECT_TRUE(std::isfinite(next.train_records(pointers(records_)).tokens.loss));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TrainerState,
                         ::testing::Combine(::testing::Values("dense_untied", "moe_norm"),
                                            ::testing::Values(State{MomentType::kFp32, false},
                                                              State{MomentType::kBf16, false},
                                                              State{MomentType::kFp32, true},
                                                              State{MomentType::kBf16, true})),
                         [](const auto& param) {
                           const State& state = std::get<1>(param.param);
                           return std::get<0>(param.param) +
                                  (state.type == MomentType::kBf16 ? "_bf16" : "_fp32") +
                                  (state.is_mapped ? "_mapped" : "");
                         });

std::vector<double> losses_of(const std::string& model, MomentType state, const fs::path& mapped_in,
                              int steps) {
  const auto group = solo_group("t");
  const MeshGroups groups(*group);
  Trainer trainer(sft_config(model, state, mapped_in), groups);
  const auto records = oracle_records(model);
  std::vector<double> losses;
  losses.reserve(static_cast<size_t>(steps));
  for (int step = 0; step < steps; ++step) {
    losses.push_back(trainer.train_records(pointers(records)).tokens.loss);
  }
  return losses;
}

TEST(MomentTypes, InMappedFilesTheLossesHaveTheSameBits) {
  const TempFolder folder;
  for (const char* model : {"dense_untied", "moe_norm"}) {
    EXPECT_EQ(losses_of(model, MomentType::kFp32, folder.path, 3),
              losses_of(model, MomentType::kFp32, {}, 3));
  }
}

TEST(MomentTypes, InBf16TheLossCurveStaysNearFloat32s) {
  constexpr int kSteps = 40;
  for (const char* model : {"dense_untied", "moe_norm"}) {
    const auto fp32 = losses_of(model, MomentType::kFp32, {}, kSteps);
    const auto bf16 = losses_of(model, MomentType::kBf16, {}, kSteps);
    EXPECT_LT(fp32.back(), 0.5 * fp32.front()) << "a curve that goes down";
    EXPECT_NE(fp32, bf16);
    for (int step = 0; step < kSteps; ++step) {
      const auto i = static_cast<size_t>(step);
      EXPECT_NEAR(bf16[i], fp32[i], 0.02 * fp32.front()) << model << ", step " << step;
    }
  }
}

}  // namespace
}  // namespace nibble
