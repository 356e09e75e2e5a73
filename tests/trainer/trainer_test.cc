// The trainer on tiny Transformers checkpoints: ranks agree, resume is exact, QAT matters.
#include "trainer/trainer.h"

#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <random>

#include "core/base/fail.h"
#include "core/kernels/linear.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "tests/core/comm/run_ranks.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
const fs::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

enum class Mode { kQat, kBf16, kServeOnly };

TrainerConfig make_config(const std::string& name, Mode mode) {
  TrainerConfig config;
  config.model = kModels / name / "bf16";
  config.reference = config.model;
  const HfDirectory int4(kModels / name / "int4_sym7");
  const ParameterTable table = model_parameters(parse_model_config(int4.config(), name));
  config.train_plan = mode == Mode::kQat ? checkpoint_plan(int4, table) : plan_bf16(table);
  config.serve_plan = mode == Mode::kBf16 ? plan_bf16(table) : checkpoint_plan(int4, table);
  config.optimizer.lr = 1e-3;
  config.optimizer.clip_norm = 1.0;
  config.algorithm.loss.kl_coef = 0.01;
  config.max_tokens_per_device = 64;
  config.max_positions = 256;
  return config;
}

// Random groups whose log-probabilities are those of `trainer`'s weights, so that the gap is 0.
std::vector<SampleGroup> make_groups(int count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<SampleGroup> groups;
  for (int g = 0; g < count; ++g) {
    SampleGroup group;
    group.prompt_id = static_cast<uint64_t>(g);
    for (int i = 0; i < 3 + g % 4; ++i)
      group.prompt.push_back(static_cast<int32_t>(engine() % 480));
    for (int s = 0; s < 4; ++s) {
      Sample sample;
      sample.sample_index = static_cast<uint32_t>(s);
      for (int i = 0; i < 1 + s * 2; ++i) {
        sample.response.push_back(static_cast<int32_t>(engine() % 480));
        sample.log_probs.push_back(-5.0f);
      }
      sample.reward = static_cast<double>(engine() % 2);
      group.samples.push_back(sample);
    }
    groups.push_back(group);
  }
  return groups;
}

void fill_log_probs(Trainer& trainer, std::vector<SampleGroup>& groups) {
  for (SampleGroup& group : groups) {
    for (Sample& sample : group.samples) {
      std::vector<int32_t> ids = group.prompt;
      ids.insert(ids.end(), sample.response.begin(), sample.response.end());
      const auto all = trainer.log_probs(ids);
      sample.log_probs.assign(all.end() - static_cast<std::ptrdiff_t>(sample.response.size()),
                              all.end());
    }
  }
}

std::vector<std::vector<SampleGroup>> one_update(const std::vector<SampleGroup>& groups) {
  return {groups};
}

class TrainerModels : public ::testing::TestWithParam<std::string> {};

TEST_P(TrainerModels, SharedPromptsGiveTheLogProbsOfPlainSequencesBitForBit) {
  const auto group = solo_group("t");
  Trainer trainer(make_config(GetParam(), Mode::kQat), *group);
  auto groups = make_groups(5, 1);
  fill_log_probs(trainer, groups);  // one plain sequence at a time
  const TrainMetrics metrics = trainer.train(one_update(groups), 0);
  EXPECT_EQ(metrics.log_prob_diff_max, 0.0);
  EXPECT_GT(metrics.response_tokens, 50);
  EXPECT_GT(metrics.changes.changed_codes, 0);
}

TEST_P(TrainerModels, KlToTheReferenceIsExactlyZeroAtStepZeroWithoutQat) {
  const auto group = solo_group("t");
  Trainer trainer(make_config(GetParam(), Mode::kBf16), *group);
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
  auto groups = make_groups(5, 9);
  const auto run = [&](bool offload) {
    TrainerConfig config = make_config(GetParam(), Mode::kQat);
    config.offload_reference = config.optimizer.offload = offload;
    Trainer trainer(std::move(config), *group);
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
  Trainer plain(make_config(GetParam(), Mode::kBf16), *group);
  Trainer qat(make_config(GetParam(), Mode::kQat), *group);
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
  Trainer trainer(make_config(GetParam(), Mode::kQat), *group);
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
  auto groups = make_groups(4, 5);
  Trainer whole(make_config(GetParam(), Mode::kQat), *group);
  fill_log_probs(whole, groups);
  for (int step = 0; step < 2; ++step) whole.train(one_update(groups), step);
  whole.save(root / "checkpoints" / checkpoint_name(2), {2, 3, 0});
  for (int step = 2; step < 4; ++step) whole.train(one_update(groups), step);
  whole.save(root / "end_whole", {4, 5, 0});

  Trainer resumed(make_config(GetParam(), Mode::kQat), *group);
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

int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 0;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  close(fd);
  return ntohs(address.sin_port);
}

void require(bool condition, const char* what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

TEST(TrainerRanks, TwoRanksTrainAsOneToRoundingAndLogProbsAreTheSameBits) {
  std::string name = (fs::temp_directory_path() / "nibble_rk_XXXXXX").string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const fs::path root = name;
  for (const std::string& model : {std::string("dense_untied"), std::string("moe_norm")}) {
    const std::vector<int32_t> ids = {5, 9, 200, 31, 77, 13, 2};
    // Runs in children: torch's threads must not exist when ranks fork.
    const auto run = [&](int world, const fs::path& out) {
      const int port = free_port();
      return run_ranks(world, 100s, [&, world, port](int rank) {
        std::unique_ptr<RendezvousServer> server;
        std::unique_ptr<ProcessGroup> group = solo_group("t");
        if (world > 1) {
          if (rank == 0) server = std::make_unique<RendezvousServer>(port);
          group = join_gloo_group({"127.0.0.1", port, "trainers", 30s}, rank, world);
        }
        Trainer trainer(make_config(model, Mode::kQat), *group);
        auto groups = make_groups(6, 6);
        fill_log_probs(trainer, groups);
        std::vector<int64_t> tokens;
        tokens.reserve(groups.size());
        for (const auto& g : groups) tokens.push_back(group_tokens(g));
        const auto shares = balance_groups(tokens, world);
        for (int step = 0; step < 2; ++step) {
          std::vector<SampleGroup> mine;
          for (const int64_t g : shares[static_cast<size_t>(rank)])
            mine.push_back(groups[static_cast<size_t>(g)]);
          const TrainMetrics metrics = trainer.train(one_update(mine), step);
          require(step > 0 || metrics.log_prob_diff_max == 0.0, "gap at step 0");
          require(world == 1 || (metrics.gathered.quantized > 0 && metrics.gathered.plain > 0),
                  "gathers move packed bytes");
        }
        trainer.save(out, {2, 2, 0});
        // The same weights in either layout give the same bits.
        Trainer again(make_config(model, Mode::kQat), *group);
        again.load(root / (model + "_1"));
        const auto log_probs = again.log_probs(ids);
        if (rank == 0) {
          write_file_atomically(
              out.string() + ".logprobs",
              {reinterpret_cast<const char*>(log_probs.data()), log_probs.size() * 4});
        }
      });
    };
    ASSERT_EQ(run(1, root / (model + "_1")), 1);
    ASSERT_EQ(run(2, root / (model + "_2")), 2);
    EXPECT_EQ(read_file((root / (model + "_1")).string() + ".logprobs", 1000),
              read_file((root / (model + "_2")).string() + ".logprobs", 1000));
    // Masters after two updates: equal to rounding, whatever the number of ranks.
    const HfDirectory start(kModels / model / "bf16");
    const ModelSpec spec = make_model_spec(parse_model_config(start.config(), model));
    const ShardLayout layout{
        &spec.table, checkpoint_plan(HfDirectory(kModels / model / "int4_sym7"), spec.table), 0, 1};
    OptimizerState one(layout);
    OptimizerState two(layout);
    load_train_checkpoint(root / (model + "_1"), layout, one);
    load_train_checkpoint(root / (model + "_2"), layout, two);
    double worst = 0.0;
    for (size_t p = 0; p < one.m.size(); ++p) {
      for (size_t i = 0; i < one.m[p].size(); ++i) {
        worst = std::max(
            worst, std::fabs(static_cast<double>(one.m[p][i]) - static_cast<double>(two.m[p][i])));
      }
    }
    EXPECT_LT(worst, 1e-5) << model << ": first moments";
  }
  fs::remove_all(root);
}

}  // namespace
}  // namespace nibble
