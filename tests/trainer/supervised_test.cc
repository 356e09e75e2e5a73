// Supervised steps of the trainer against Transformers (tests/oracles/models): loss, gradients, the
// prompt's mask; ranks and micro-batches agree, resume is exact, a random start learns.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "core/base/file.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/trainer/oracle_records.h"
#include "trainer/trainer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
const fs::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

TrainerConfig make_config(const std::string& name, bool qat) {
  TrainerConfig config;
  config.model = kModels / name / "bf16";
  const HfDirectory int4(kModels / name / "int4_sym7");
  const ParameterTable table = model_parameters(parse_model_config(int4.config(), name));
  config.train_plan = qat ? checkpoint_plan(int4, table) : plan_bf16(table);
  config.serve_plan = config.train_plan;
  config.algorithm.loss.objective = PolicyObjective::kSft;
  config.algorithm.loss.aggregation = Aggregation::kTokenMean;
  config.algorithm.reference = ReferenceMode::kNever;
  config.optimizer.lr = 1e-3;
  config.optimizer.clip_norm = 0.0;
  config.max_tokens_per_device = 96;
  config.max_positions = 256;
  return config;
}

int64_t target_tokens(const std::vector<TokenRecord>& records) {
  int64_t count = 0;
  for (const TokenRecord& record : records) count += std::ssize(record.response);
  return count;
}

struct Case {
  std::string model;
  bool qat;
};

class Supervised : public ::testing::TestWithParam<Case> {};

// The first moment after one step without clipping is (1 - beta1) times the gradient.
TEST_P(Supervised, LossAndGradientsAreThoseOfTransformers) {
  const auto [name, qat] = GetParam();
  const auto group = solo_group("t");
  const MeshGroups groups(*group);
  const TempFolder folder;
  const TrainerConfig config = make_config(name, qat);
  Trainer trainer(config, groups);
  const auto records = oracle_records(name);
  const SupervisedMetrics metrics = trainer.train_records(pointers(records));
  const auto tokens = static_cast<double>(target_tokens(records));
  EXPECT_EQ(static_cast<double>(metrics.tokens.target_tokens), tokens);

  const OracleModel oracle(name);
  const std::string stats_key = qat ? "sym7_grad_ste" : "grad";
  for (const Json& info : read_json_file(kModels / "cases.json")) {
    if (info["name"] != name) continue;
    const Json& stats = info["stats"][stats_key];
    EXPECT_NEAR(metrics.tokens.loss / (stats["loss"].get<double>() / tokens), 1.0, 1e-6);
    EXPECT_NEAR(metrics.update.grad_norm / (stats["global_grad_norm"].get<double>() / tokens), 1.0,
                1e-5);
  }

  trainer.save(folder.path / "step", {1, 0, 0});
  const CheckpointReader reader(folder.path / "step");
  int checked = 0;
  for (int64_t p = 0; p < trainer.spec().table.size(); ++p) {
    const ParameterSpec& parameter = trainer.spec().table.at(p);
    const std::string key = (qat ? "sym7.grad." : "grad.") + parameter.name();
    if (!oracle.io.contains(key)) continue;
    std::vector<float> moment;
    reader.read_rows("m", p, {0, parameter.rows}, moment);
    const std::vector<float> want = oracle.floats(key);
    ASSERT_EQ(moment.size(), want.size());
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double got = static_cast<double>(moment[i]) / (1.0 - config.optimizer.beta1) * tokens;
      difference += std::pow(got - static_cast<double>(want[i]), 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(norm)) << key;
    ++checked;
  }
  EXPECT_GE(checked, 3);
}

TEST_P(Supervised, OnlyTheResponseCounts) {
  const auto [name, qat] = GetParam();
  const auto group = solo_group("t");
  const MeshGroups groups(*group);
  Trainer trainer(make_config(name, qat), groups);
  const std::vector<TokenRecord> records = {{{5, 9, 200}, {31, 77}}, {{8, 8, 4, 12}, {3, 90, 41}}};
  double sum = 0.0;
  for (const TokenRecord& record : records) {
    std::vector<int32_t> ids = record.prompt;
    ids.insert(ids.end(), record.response.begin(), record.response.end());
    const std::vector<float> all = trainer.log_probs(ids);
    for (size_t i = record.prompt.size() - 1; i < all.size(); ++i) {
      sum -= static_cast<double>(all[i]);
    }
  }
  const TokenLoss loss = trainer.evaluate_records(pointers(records));
  EXPECT_EQ(loss.target_tokens, 5);
  EXPECT_NEAR(loss.loss, sum / 5.0, 1e-12);
  EXPECT_GT(loss.entropy, 0.0);
  EXPECT_NEAR(trainer.train_records(pointers(records)).tokens.loss, loss.loss, 1e-12)
      << "an evaluation leaves the weights alone and is the loss before the step";
  EXPECT_LT(trainer.evaluate_records(pointers(records)).loss, loss.loss);
}

TEST_P(Supervised, MicroBatchesDoNotChangeTheStep) {
  const auto [name, qat] = GetParam();
  const auto group = solo_group("t");
  const MeshGroups groups(*group);
  const auto records = oracle_records(name);
  std::vector<SupervisedMetrics> metrics;
  for (const int64_t limit : {1, 64, 4096}) {
    TrainerConfig config = make_config(name, qat);
    config.max_tokens_per_device = limit;
    Trainer trainer(config, groups);
    metrics.push_back(trainer.train_records(pointers(records)));
  }
  for (const SupervisedMetrics& other : metrics) {
    EXPECT_NEAR(other.tokens.loss, metrics[0].tokens.loss, 1e-12);
    EXPECT_NEAR(other.update.grad_norm / metrics[0].update.grad_norm, 1.0, 1e-6);
  }
}

TEST_P(Supervised, ResumeContinuesBitForBit) {
  const auto [name, qat] = GetParam();
  const auto group = solo_group("t");
  const MeshGroups groups(*group);
  const TempFolder folder;
  const auto records = oracle_records(name);
  Trainer whole(make_config(name, qat), groups);
  whole.train_records(pointers(records));
  whole.save(folder.path / "middle", {1, 0, 0});
  whole.train_records(pointers(records));
  whole.save(folder.path / "whole", {2, 0, 0});
  Trainer resumed(make_config(name, qat), groups);
  EXPECT_EQ(resumed.load(folder.path / "middle").step, 1);
  resumed.train_records(pointers(records));
  resumed.save(folder.path / "resumed", {2, 0, 0});
  EXPECT_EQ(digest_checkpoint(folder.path / "whole").state_sha256,
            digest_checkpoint(folder.path / "resumed").state_sha256);
}

INSTANTIATE_TEST_SUITE_P(Models, Supervised,
                         ::testing::Values(Case{"dense_untied", false}, Case{"dense_untied", true},
                                           Case{"dense_tied", false}, Case{"moe_norm", false},
                                           Case{"moe_norm", true}, Case{"moe_mixed", false},
                                           Case{"llama_smol", false}),
                         [](const auto& param) {
                           return param.param.model + (param.param.qat ? "_qat" : "_bf16");
                         });

TrainerConfig random_config(const std::string& name) {
  TrainerConfig config = make_config(name, false);
  config.init = ModelInit::kRandom;
  config.seed = 11;
  return config;
}

// What a run of `world` ranks computes: losses of three steps, then the loss of the trained model.
// Runs in children, because torch's threads must not exist when ranks fork.
void run_world(int world, const std::string& model, const fs::path& out) {
  const int port = free_port();
  ASSERT_EQ(
      run_ranks(world, 100s,
                [&, world, port](int rank) {
                  std::unique_ptr<RendezvousServer> server;
                  std::unique_ptr<ProcessGroup> group = solo_group("t");
                  if (world > 1) {
                    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
                    group = join_gloo_group({"127.0.0.1", port, "trainers", 30s}, rank, world);
                  }
                  const MeshGroups groups(*group);
                  Trainer trainer(random_config(model), groups);
                  trainer.save(out.string() + ".start", {0, 0, 0});
                  const auto records = oracle_records(model);
                  const auto share = share_records(pointers(records), rank, world);
                  std::vector<double> losses = {trainer.evaluate_records(share).loss};
                  for (int step = 0; step < 3; ++step) {
                    losses.push_back(trainer.train_records(share).tokens.loss);
                  }
                  if (rank != 0) return;
                  write_file_atomically(out, {reinterpret_cast<const char*>(losses.data()),
                                              losses.size() * sizeof(double)});
                }),
      world);
}

std::vector<double> read_doubles(const fs::path& file) {
  const std::string bytes = read_file(file, 1000);
  std::vector<double> values(bytes.size() / sizeof(double));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

TEST(SupervisedRanks, StartFromTheSameBitsAndTrainAsOneToRounding) {
  for (const std::string model : {"dense_untied", "moe_norm"}) {
    const TempFolder folder;
    // Four ranks for three or four records: some may have nothing in a round.
    for (const int world : {1, 2, 4}) {
      run_world(world, model, folder.path / std::to_string(world));
    }
    const auto one = read_doubles(folder.path / "1");
    const auto start = digest_checkpoint(folder.path / "1.start");
    for (const std::string world : {"2", "4"}) {
      EXPECT_EQ(digest_checkpoint(folder.path / (world + ".start")).state_sha256,
                start.state_sha256);
      const auto many = read_doubles(folder.path / world);
      ASSERT_EQ(many.size(), one.size());
      EXPECT_NEAR(many[0], one[0], 1e-12) << "the same log-probabilities, summed in another order";
      for (size_t i = 1; i < one.size(); ++i) EXPECT_NEAR(many[i], one[i], 1e-4) << model << i;
    }
  }
}

TEST(SupervisedRandomStart, NeedsNoWeightsAndLearns) {
  for (const std::string name : {"dense_untied", "moe_norm"}) {
    const TempFolder folder;
    fs::copy_file(kModels / name / "bf16/config.json", folder.path / "config.json");
    TrainerConfig config = random_config(name);
    config.model = folder.path;
    config.optimizer.clip_norm = 1.0;
    config.optimizer.lr = 3e-3;
    const auto group = solo_group("t");
    const MeshGroups groups(*group);
    Trainer trainer(config, groups);
    const auto records = oracle_records(name);
    const double first = trainer.evaluate_records(pointers(records)).loss;
    EXPECT_NEAR(first, std::log(512.0), 1.0) << "no better than a guess among all tokens";
    for (int step = 0; step < 12; ++step) trainer.train_records(pointers(records));
    EXPECT_LT(trainer.evaluate_records(pointers(records)).loss, 0.7 * first) << name;
  }
}

}  // namespace
}  // namespace nibble
