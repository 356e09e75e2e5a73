// The trainer on tiny Transformers checkpoints: ranks agree, resume is exact, QAT matters.
#include "trainer/trainer.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "core/base/fail.h"
#include "core/checkpoint/checkpoint_list.h"
#include "core/kernels/linear.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "tests/trainer/tiny_trainer.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::vector<std::vector<SampleGroup>> one_update(const std::vector<SampleGroup>& groups) {
  return {groups};
}

class TrainerModels : public ::testing::TestWithParam<std::string> {};

TEST_P(TrainerModels, SharedPromptsGiveTheLogProbsOfPlainSequencesBitForBit) {
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  Trainer trainer(make_config(GetParam(), Mode::kQat), ranks);
  auto groups = make_groups(5, 1);
  fill_log_probs(trainer, groups);  // one plain sequence at a time
  const TrainMetrics metrics = trainer.train(one_update(groups), 0);
  EXPECT_EQ(metrics.log_prob_diff_max, 0.0);
  EXPECT_GT(metrics.response_tokens, 50);
  const PartChanges all = metrics.changes.total();
  EXPECT_GT(all.changed_codes, 0);
  EXPECT_GT(all.changed_bytes, 0);
  EXPECT_LE(all.changed_bytes, all.bytes);
  EXPECT_EQ(all.bytes, make_manifest(trainer.spec().table, trainer.serving_layout().plan).bytes);
  EXPECT_GT(std::ssize(metrics.changes.layers), 0);
  for (const PartChanges& layer : metrics.changes.layers) EXPECT_GT(layer.changed_bytes, 0);
}

TEST_P(TrainerModels, KlToTheReferenceIsExactlyZeroAtStepZeroWithoutQat) {
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  Trainer trainer(make_config(GetParam(), Mode::kBf16), ranks);
  auto groups = make_groups(3, 2);
  fill_log_probs(trainer, groups);
  const TrainMetrics first = trainer.train(one_update(groups), 0);
  EXPECT_TRUE(first.has_reference);
  EXPECT_EQ(first.kl_reference, 0.0);
  EXPECT_EQ(first.loss.kl_loss, 0.0);
  const TrainMetrics second = trainer.train(one_update(groups), 1);
  EXPECT_GT(second.kl_reference, 0.0) << "training moved the policy away from the reference";
}

TEST_P(TrainerModels, AReferenceOnTheHostGivesTheSameBits) {
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  auto groups = make_groups(5, 9);
  const auto run = [&](bool offload) {
    TrainerConfig config = make_config(GetParam(), Mode::kQat);
    config.offload_reference = config.optimizer.offload = offload;
    Trainer trainer(std::move(config), ranks);
    fill_log_probs(trainer, groups);
    TrainMetrics metrics;
    for (int step = 0; step < 2; ++step) metrics = trainer.train(one_update(groups), step);
    return metrics;
  };
  const TrainMetrics kept = run(false), offloaded = run(true);
  EXPECT_GT(kept.kl_reference, 0.0);
  EXPECT_EQ(kept.kl_reference, offloaded.kl_reference);
  EXPECT_EQ(kept.loss.loss, offloaded.loss.loss);
  EXPECT_EQ(kept.update.grad_norm, offloaded.update.grad_norm);
  EXPECT_EQ(offloaded.gathered.plain, 0) << "one rank gathers nothing";
}

TEST_P(TrainerModels, QatChangesTheProductAndFollowsTheMasters) {
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  Trainer plain(make_config(GetParam(), Mode::kBf16), ranks);
  Trainer qat(make_config(GetParam(), Mode::kQat), ranks);
  const std::vector<int32_t> ids = {5, 9, 200, 31, 77};
  const auto before = qat.log_probs(ids);
  EXPECT_NE(plain.log_probs(ids), before) << "fake quantization is in the product";
  auto groups = make_groups(3, 3);
  fill_log_probs(qat, groups);
  qat.train(one_update(groups), 0);
  EXPECT_NE(qat.log_probs(ids), before) << "and follows the masters";
}

TEST_P(TrainerModels, ServedBytesAreTheBytesTheTrainerMultipliesWith) {
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  Trainer trainer(make_config(GetParam(), Mode::kQat), ranks);
  auto groups = make_groups(3, 4);
  fill_log_probs(trainer, groups);
  trainer.train(one_update(groups), 0);
  // A fresh model from the published shards, as a rollout worker has it.
  ResidentWeights served(trainer.spec().table, trainer.serving_layout().plan);
  for (int64_t p = 0; p < trainer.spec().table.size(); ++p) {
    served.stored(p) = trainer.serving_shards()->parameters[static_cast<size_t>(p)];
  }
  const std::vector<int32_t> ids = {5, 9, 200, 31, 77};
  const at::NoGradGuard no_grad;
  const PackedBatch batch = pack_sequence(ids);
  const auto rope =
      make_rope_table(trainer.spec().config.rope, trainer.spec().config.head_dim, 256);
  const TapeResult result =
      run_log_probs(trainer.spec(), served, rope, {batch}, 1.0f, ActivationType::kFloat32);
  const auto want = trainer.log_probs(ids);
  EXPECT_EQ(std::memcmp(result.log_prob.const_data_ptr<float>(), want.data(), want.size() * 4), 0);
}

TEST_P(TrainerModels, ResumeContinuesBitForBit) {
  std::string name = (fs::temp_directory_path() / "nibble_ck_XXXXXX").string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const fs::path root = name;
  const auto group = solo_group("t");
  const MeshGroups ranks(*group);
  auto groups = make_groups(4, 5);
  Trainer whole(make_config(GetParam(), Mode::kQat), ranks);
  fill_log_probs(whole, groups);
  for (int step = 0; step < 2; ++step) whole.train(one_update(groups), step);
  whole.save(root / "checkpoints" / checkpoint_name(2), {2, 3, 0});
  for (int step = 2; step < 4; ++step) whole.train(one_update(groups), step);
  whole.save(root / "end_whole", {4, 5, 0});

  Trainer resumed(make_config(GetParam(), Mode::kQat), ranks);
  const auto found = list_checkpoints(root / "checkpoints");
  ASSERT_EQ(found.size(), 1u);
  const TrainProgress progress = resumed.load(found[0].path);
  EXPECT_EQ(progress.step, 2);
  EXPECT_EQ(progress.weight_version, 3);
  for (int step = 2; step < 4; ++step) resumed.train(one_update(groups), step);
  resumed.save(root / "end_resumed", {4, 5, 0});
  const auto a = digest_checkpoint(root / "end_whole");
  const auto b = digest_checkpoint(root / "end_resumed");
  EXPECT_EQ(a.state_sha256, b.state_sha256);
  EXPECT_EQ(a.weights_sha256, b.weights_sha256);
  EXPECT_NE(a.state_sha256, digest_checkpoint(found[0].path).state_sha256);
  fs::remove_all(root);
}

INSTANTIATE_TEST_SUITE_P(Models, TrainerModels,
                         ::testing::Values("dense_untied", "dense_tied", "moe_norm", "moe_mixed",
                                           "llama_smol"),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace nibble
