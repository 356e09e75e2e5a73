// R3: the trainer sends tokens to the experts that the rollout chose.
#include "trainer/routing_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"
#include "tests/trainer/tiny_trainer.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr const char* kModel = "moe_norm";

std::vector<MicroBatch> batches_of(const std::vector<SampleGroup>& groups, int64_t max_tokens) {
  std::vector<ScoredGroup> scored;
  scored.reserve(groups.size());
  for (const SampleGroup& group : groups) {
    scored.push_back({&group, std::vector<double>(group.samples.size(), 1.0)});
  }
  return make_micro_batches(scored, max_tokens);
}

ModelConfig config_of(const char* name) {
  const HfDirectory model(test_root() / "tests/oracles/models" / name / "bf16");
  return parse_model_config(model.config(), name);
}

TEST(RoutingReplay, RowsAreThePackedTokensAlsoWhereAPromptIsComputedAgain) {
  const ModelConfig config = config_of(kModel);
  const int64_t layers = config.num_moe_layers(), k = config.moe.top_k;
  // A token's route tells which token it is of, and in which layer.
  const auto expert_of = [&](int32_t token, int64_t layer, int64_t choice) {
    return static_cast<int32_t>((token + 3 * layer + choice) % config.moe.num_experts);
  };
  const auto routes_of = [&](std::span<const int32_t> tokens) {
    std::vector<uint8_t> routes;
    for (const int32_t token : tokens) {
      for (int64_t i = 0; i < layers * k; ++i) {
        routes.push_back(static_cast<uint8_t>(expert_of(token, i / k, i % k)));
      }
    }
    return routes;
  };
  auto groups = make_groups(3, 5);
  int64_t prompts = 0, packed_prompts = 0;
  for (SampleGroup& group : groups) {
    group.route_shape = {layers, k, 1};
    group.prompt_routes = routes_of(group.prompt);
    prompts += std::ssize(group.prompt);
    for (Sample& sample : group.samples) {
      sample.routes = routes_of(std::span(sample.response).first(sample.response.size() - 1));
      packed_prompts -= std::ssize(sample.response) - 1;
    }
  }
  for (const MicroBatch& batch : batches_of(groups, 12)) {  // cuts groups by samples
    const auto replay = replay_of(batch, config, ops::cpu_backend());
    ASSERT_EQ(std::ssize(replay), layers);
    const std::vector<int32_t>& tokens = batch.packed.tokens;
    packed_prompts += std::ssize(tokens);
    for (int64_t l = 0; l < layers; ++l) {
      const at::Tensor& layer = replay[static_cast<size_t>(l)];
      ASSERT_EQ(layer.size(0), std::ssize(tokens));
      for (int64_t i = 0; i < layer.numel(); ++i) {
        ASSERT_EQ(layer.const_data_ptr<int32_t>()[i],
                  expert_of(tokens[static_cast<size_t>(i / k)], l, i % k));
      }
    }
  }
  EXPECT_GT(packed_prompts, prompts) << "no prompt was computed again";
}

TEST(RoutingReplay, TwoByteExpertsAreReadAlike) {
  const ModelConfig config = config_of(kModel);
  auto groups = make_groups(2, 6);
  set_routes(groups, config, 2);
  auto narrow = batches_of(groups, 1000);
  auto wide = narrow;
  for (MicroBatch& batch : wide) {
    batch.route_shape.bytes_per_expert = 2;
    std::vector<uint8_t> routes;
    for (const uint8_t expert : batch.routes) routes.insert(routes.end(), {expert, 0});
    batch.routes = routes;
  }
  const auto a = replay_of(narrow[0], config, ops::cpu_backend());
  const auto b = replay_of(wide[0], config, ops::cpu_backend());
  for (size_t l = 0; l < a.size(); ++l) EXPECT_TRUE(a[l].equal(b[l]));
}

TEST(RoutingReplay, WhatIsNotTheModelsIsRefused) {
  const ModelConfig config = config_of(kModel);
  auto groups = make_groups(2, 7);
  set_routes(groups, config, 3);
  const auto refuses = [&](const char* words, const auto& spoil) {
    MicroBatch batch = batches_of(groups, 1000)[0];
    spoil(batch);
    try {
      (void)replay_of(batch, config, ops::cpu_backend());
      FAIL() << words;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_THAT(error.what(), HasSubstr(words));
    }
  };
  refuses("without the experts", [](MicroBatch& b) { b.routes.clear(); });
  refuses("bytes of routes", [](MicroBatch& b) { b.routes.pop_back(); });
  refuses("bytes of routes", [](MicroBatch& b) { ++b.route_shape.layers; });
  refuses("twice", [](MicroBatch& b) { b.routes[1] = b.routes[0]; });
  refuses("to expert 200 of", [](MicroBatch& b) { b.routes[0] = 200; });
}

// The choices of the model that is trained, recorded by a pass over the same tokens.
void set_own_routes(std::vector<SampleGroup>& groups, const TrainerConfig& options) {
  const HfDirectory directory(options.model);
  const ModelSpec spec = make_model_spec(parse_model_config(directory.config(), kModel));
  const auto weights =
      load_weights_quantized(directory, spec.table, options.train_plan, ops::torch_parallel());
  const auto rope = make_rope_table(spec.config.rope, spec.config.head_dim, options.max_positions);
  const int64_t k = spec.config.moe.top_k;
  for (SampleGroup& group : groups) {
    SequenceGroup sequence{group.prompt, {}};
    for (const Sample& sample : group.samples) sequence.responses.push_back(sample.response);
    const PackedBatch packed = pack_groups(std::span(&sequence, 1));
    const TapeResult result =
        run_log_probs(spec, *weights, rope, {packed}, 1.0f, ActivationType::kFloat32);
    int64_t row = 0;
    const auto take = [&](size_t tokens) {
      std::vector<uint8_t> routes;
      for (const int64_t end = row + static_cast<int64_t>(tokens); row < end; ++row) {
        for (const at::Tensor& layer : result.routes) {
          const int32_t* chosen = layer.const_data_ptr<int32_t>() + row * k;
          routes.insert(routes.end(), chosen, chosen + k);
        }
      }
      return routes;
    };
    group.route_shape = {spec.config.num_moe_layers(), k, 1};
    group.prompt_routes = take(group.prompt.size());
    for (Sample& sample : group.samples) sample.routes = take(sample.response.size() - 1);
    ASSERT_EQ(row, std::ssize(packed.tokens));
  }
}

TEST(RoutingReplay, TheTrainerFollowsTheRolloutsChoiceAndItsOwnChangesNothing) {
  TrainerConfig options = make_config(kModel, Mode::kQat);
  const auto trained = [&](bool replays, const std::vector<SampleGroup>& groups) {
    options.algorithm.routing_replay = replays;
    const auto alone = solo_group("test");
    const MeshGroups mesh(*alone);
    Trainer trainer(options, mesh);
    return trainer.train(std::vector<std::vector<SampleGroup>>{groups}, 1);
  };
  auto groups = make_groups(3, 8);
  const TrainMetrics plain = trained(false, groups);
  EXPECT_FALSE(plain.experts);

  set_own_routes(groups, options);
  const TrainMetrics own = trained(true, groups);
  EXPECT_EQ(own.loss.loss, plain.loss.loss);
  EXPECT_EQ(own.update.grad_norm, plain.update.grad_norm);
  ASSERT_TRUE(own.experts);
  EXPECT_GE(own.experts->busiest, 1.0);

  set_routes(groups, config_of(kModel), 4);
  const TrainMetrics others = trained(true, groups);
  EXPECT_NE(others.update.grad_norm, plain.update.grad_norm);
}

TEST(ExpertLoad, IsTheBusiestOverAnEvenShare) {
  const ExpertLoad load = expert_load({4, 0, 0, 0, 1, 1, 1, 1}, 4);
  EXPECT_DOUBLE_EQ(load.busiest, (4.0 + 1.0) / 2);
  EXPECT_DOUBLE_EQ(load.idle, (0.75 + 0.0) / 2);
}

}  // namespace
}  // namespace nibble
