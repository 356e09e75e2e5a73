// Adapters beside a frozen base: what is trained, kept, packed and resumed.
#include <gmock/gmock.h>

#include <cstring>

#include "core/base/file.h"
#include "tests/trainer/lora_trainer.h"
#include "tests/trainer/oracle_records.h"
#include "trainer/state/frozen_base.h"
#include "trainer/state/random_init.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const std::vector<int32_t> kIds = {5, 9, 200, 31, 77, 13, 2};

struct Alone {
  std::unique_ptr<ProcessGroup> group = solo_group("t");
  MeshGroups ranks{*group};
};

std::vector<float> base_log_probs(const std::string& name, const std::string& variant) {
  OracleModel model(name, variant);
  const at::NoGradGuard no_grad;
  const PackedBatch batch = pack_sequence(kIds);
  const TapeResult result = run_log_probs(model.spec, *model.weights, model.rope, {batch}, 1.0f,
                                          ActivationType::kFloat32);
  return {result.log_prob.const_data_ptr<float>(),
          result.log_prob.const_data_ptr<float>() + result.log_prob.numel()};
}

TrainMetrics train(Trainer& trainer, int steps, uint32_t seed = 1) {
  auto groups = make_groups(4, seed);
  fill_log_probs(trainer, groups);
  TrainMetrics metrics;
  for (int step = 0; step < steps; ++step) metrics = trainer.train(std::span(&groups, 1), step);
  return metrics;
}

class LoraBases : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(LoraBases, StartAsTheBaseToTheBitAndLearnWithoutTouchingIt) {
  const auto [name, variant] = GetParam();
  const Alone alone;
  Trainer trainer(lora_config(name, variant), alone.ranks);
  EXPECT_EQ(trainer.log_probs(kIds), base_log_probs(name, variant));
  const HfDirectory directory(test_root() / "tests/oracles/models" / name / variant);
  const OracleModel stored(name, variant);
  const TrainMetrics first = train(trainer, 1);
  EXPECT_EQ(first.log_prob_diff_max, 0.0);
  EXPECT_GT(first.update.grad_norm, 0.0);
  train(trainer, 2);
  EXPECT_NE(trainer.log_probs(kIds), base_log_probs(name, variant)) << "adapters learn";
  const ParameterTable& table = trainer.spec().table;
  int64_t trained = 0;
  for (int64_t p = 0; p < table.size(); ++p) {
    const StoredParameter& served = trainer.serving_shards()->parameters[static_cast<size_t>(p)];
    if (!table.at(p).is_frozen) {
      trained += served.bf16.num_bytes();
      continue;
    }
    const StoredParameter& base = stored.weights->stored(p);
    EXPECT_EQ(served.words, base.words) << table.at(p).module;
    EXPECT_EQ(served.scale, base.scale) << table.at(p).module;
    EXPECT_EQ(served.bf16, base.bf16) << table.at(p).module;
  }
  // What a step may change is all that it counts.
  EXPECT_EQ(first.changes.total().bytes, static_cast<double>(trained));
  EXPECT_GT(first.changes.total().changed_bytes, 0.0);
  EXPECT_EQ(first.changes.total().codes, 0.0);
}

// The second INT4 checkpoint has a grid that no packing here derives: codes stay all the same.
INSTANTIATE_TEST_SUITE_P(Checkpoints, LoraBases,
                         ::testing::Values(std::pair{"dense_untied", "int4_sym7"},
                                           std::pair{"dense_untied", "int4_llmcompressor"},
                                           std::pair{"dense_tied", "bf16"},
                                           std::pair{"moe_mixed", "int4_sym7"},
                                           std::pair{"llama_smol", "bf16"}),
                         [](const auto& param) {
                           return std::string(param.param.first) + "_" + param.param.second;
                         });

TEST(Lora, ABaseOfAnotherFormatIsRoundedToNearest) {
  const std::string name = "dense_untied";
  TrainerConfig config = lora_config(name, "int4_sym7");
  config.base = config.model;  // BF16
  const Alone alone;
  Trainer trainer(config, alone.ranks);
  EXPECT_EQ(trainer.log_probs(kIds), base_log_probs(name, "int4_sym7"));
}

TEST(Lora, WhatIsFrozenHasNoStateAndExistsOnceInAllPackings) {
  const Alone alone;
  const TrainerConfig config = lora_config("dense_untied", "int4_sym7");
  Trainer trainer(config, alone.ranks);
  const auto first = trainer.serving_shards();
  train(trainer, 1);
  const auto second = trainer.serving_shards();
  const ParameterTable& table = trainer.spec().table;
  ASSERT_NE(first, second);
  int frozen = 0;
  for (size_t p = 0; p < first->parameters.size(); ++p) {
    const StoredParameter &a = first->parameters[p], &b = second->parameters[p];
    if (!table.parameters[p].is_frozen) {
      EXPECT_NE(a.bf16.data(), b.bf16.data());
      continue;
    }
    ++frozen;
    EXPECT_EQ(a.bf16.data(), b.bf16.data());
    EXPECT_EQ(a.words.data(), b.words.data());
    EXPECT_EQ(a.scale.data(), b.scale.data());
  }
  EXPECT_GT(frozen, 20);
  const OptimizerState state({&table, config.train_plan, Mesh{1}, 0});
  for (size_t p = 0; p < state.master.size(); ++p) {
    const int64_t count = table.parameters[p].is_frozen ? 0 : table.parameters[p].num_elements();
    EXPECT_EQ(std::ssize(state.master[p]), count);
    EXPECT_EQ(std::ssize(state.m[p]), count);
    EXPECT_EQ(std::ssize(state.v[p]), count);
  }
}

TEST(Lora, AStartsUniformAsInPeftWhateverRanksDrawIt) {
  ModelConfig model = parse_model_config(
      read_hf_config(test_root() / "tests/oracles/models/dense_untied/bf16"), "dense");
  model.lora = kTestLora;
  const ParameterTable table = model_parameters(model);
  const kernels::Serial serial;
  const AdapterParameters adapter = table.adapter_of(table.layers[0].down);
  const ParameterSpec& spec = table.at(adapter.a);
  const auto draw = [&](RowShard rows, uint64_t seed) {
    std::vector<float> out(static_cast<size_t>(rows.rows() * spec.cols));
    draw_adapter_rows(spec, adapter.a, rows, seed, serial, out);
    return out;
  };
  const auto whole = draw({0, spec.rows}, 7);
  const auto part = draw({5, 9}, 7);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 5 * spec.cols));
  EXPECT_NE(draw({0, spec.rows}, 8), whole);
  const double bound = 1.0 / std::sqrt(static_cast<double>(spec.cols));
  double sum = 0.0, squares = 0.0, largest = 0.0;
  for (const float value : whole) {
    sum += value;
    squares += static_cast<double>(value) * static_cast<double>(value);
    largest = std::max(largest, std::fabs(static_cast<double>(value)));
  }
  const auto count = static_cast<double>(whole.size());
  EXPECT_LE(largest, bound);
  EXPECT_GT(largest, 0.99 * bound);
  EXPECT_NEAR(sum / count, 0.0, 0.03 * bound);
  EXPECT_NEAR(squares / count, bound * bound / 3.0, 0.02 * bound * bound) << "of a uniform draw";
}

TEST(Lora, ResumeContinuesBitForBitAndACheckpointHoldsAdaptersAlone) {
  const TempFolder folder;
  const Alone alone;
  const TrainerConfig config = lora_config("dense_untied", "int4_llmcompressor");
  Trainer whole(config, alone.ranks);
  train(whole, 2);
  whole.save(folder.path / "step", {2, 3, 0});
  train(whole, 2, 5);
  whole.save(folder.path / "whole", {4, 5, 0});

  Trainer resumed(config, alone.ranks);
  resumed.load(folder.path / "step");
  train(resumed, 2, 5);
  resumed.save(folder.path / "resumed", {4, 5, 0});
  const auto want = digest_checkpoint(folder.path / "whole");
  const auto got = digest_checkpoint(folder.path / "resumed");
  EXPECT_EQ(want.state_sha256, got.state_sha256);
  EXPECT_EQ(want.weights_sha256, got.weights_sha256);
  EXPECT_NE(want.state_sha256, digest_checkpoint(folder.path / "step").state_sha256);

  const CheckpointReader reader(folder.path / "whole");
  EXPECT_EQ(reader.spec().config.lora, kTestLora);
  EXPECT_TRUE(fs::path(reader.base()->directory).is_absolute());
  int64_t trained = 0;
  for (const ParameterSpec& p : reader.spec().table.parameters) {
    if (!p.is_frozen) trained += p.num_elements();
  }
  int64_t stored = 0;
  for (const TensorInfo& info : reader.rows().files()[0].tensors()) stored += info.num_elements();
  EXPECT_EQ(stored, 3 * trained);
  // Served are the base's bytes, and what the trainer published.
  const kernels::Serial serial;
  for (int64_t p = 0; p < reader.spec().table.size(); ++p) {
    const StoredParameter& published = whole.serving_shards()->parameters[static_cast<size_t>(p)];
    const StoredParameter served = reader.served(p, serial);
    EXPECT_EQ(served.words, published.words);
    EXPECT_EQ(served.scale, published.scale);
    EXPECT_EQ(served.bf16, published.bf16);
  }
}

std::string refusal(const std::function<void()>& body, ErrorCode code) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "nothing was refused";
}

TEST(Lora, OtherAdaptersAndAnotherBaseAreRefused) {
  const TempFolder folder;
  const Alone alone;
  const fs::path base = folder.path / "base";
  fs::copy(test_root() / "tests/oracles/models/dense_untied/int4_sym7", base);
  TrainerConfig config = lora_config("dense_untied", "int4_sym7");
  config.base = base;
  Trainer trainer(config, alone.ranks);
  trainer.save(folder.path / "step", {0, 1, 0});
  const auto load = [&](const TrainerConfig& other) {
    Trainer(other, alone.ranks).load(folder.path / "step");
  };
  EXPECT_THAT(refusal(
                  [&] {
                    load(lora_config("dense_untied", "int4_sym7", {64, 48.0}));
                  },
                  ErrorCode::kInvalidArgument),
              HasSubstr("was trained with lora.rank 32, lora.alpha 48"));
  EXPECT_THAT(refusal(
                  [&] {
                    load(lora_config("dense_untied", "int4_sym7", {32, 64.0}));
                  },
                  ErrorCode::kInvalidArgument),
              HasSubstr("lora.alpha 64"));
  EXPECT_THAT(
      refusal([&] { load(make_config("dense_untied", Mode::kQat)); }, ErrorCode::kInvalidArgument),
      HasSubstr("this run has lora.rank 0"));
  EXPECT_THAT(refusal([&] { load(lora_config("dense_untied", "int4_llmcompressor")); },
                      ErrorCode::kDataLoss),
              HasSubstr("beside the weights in"));
  load(config);

  const kernels::Serial serial;
  const auto serve = [&] { (void)CheckpointReader(folder.path / "step").served(0, serial); };
  serve();
  // One bit of one weight, somewhere in the middle.
  std::string bytes = read_file(base / "model.safetensors", 1 << 26);
  bytes[bytes.size() / 2] ^= 1;
  write_file_atomically(base / "model.safetensors", bytes);
  EXPECT_THAT(refusal(serve, ErrorCode::kDataLoss), HasSubstr("has other weights than those"));
  fs::remove_all(base);
  EXPECT_THAT(refusal(serve, ErrorCode::kNotFound), HasSubstr("not in '" + base.string() + "'"));
}

TEST(Lora, AnotherModelsBaseIsRefusedByName) {
  TrainerConfig config = lora_config("dense_untied", "int4_sym7");
  config.base = test_root() / "tests/oracles/models/dense_tied/bf16";
  const Alone alone;
  EXPECT_THAT(refusal([&] { Trainer(config, alone.ranks); }, ErrorCode::kInvalidArgument),
              HasSubstr("does not fit"));
}

}  // namespace
}  // namespace nibble
