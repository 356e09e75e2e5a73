// qat.start: calibrated through the trainer: the first packing is the checkpoint, masters stay in
// their range, small updates are kept, scales are state that resumes in any layout.
#include <gtest/gtest.h>

#include <cstring>

#include "core/base/file.h"
#include "core/models/weights.h"
#include "core/quant/held_scale.h"
#include "core/quant/pack.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/trainer/oracle_records.h"
#include "trainer/trainer.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
const fs::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

TrainerConfig make_config(const std::string& name, const fs::path& int4) {
  TrainerConfig config;
  config.model = kModels / name / "bf16";
  config.calibrated = int4;
  const HfDirectory directory(int4);
  const ParameterTable table = model_parameters(parse_model_config(directory.config(), name));
  config.train_plan = config.serve_plan = checkpoint_plan(directory, table);
  config.algorithm.loss.objective = PolicyObjective::kSft;
  config.algorithm.loss.aggregation = Aggregation::kTokenMean;
  config.algorithm.reference = ReferenceMode::kNever;
  config.optimizer.lr = 1e-3;
  config.max_positions = 256;
  return config;
}
// llm-compressor's grid, with codes -8.
TrainerConfig make_config(const std::string& name) {
  return make_config(name, kModels / name / "int4_llmcompressor");
}

struct Solo {
  std::unique_ptr<ProcessGroup> group = solo_group("t");
  MeshGroups groups{*group};
};

// Saves at once, then trains and saves again, as one of `world` ranks. Runs in children, because
// torch's threads must not exist when ranks fork.
struct World {
  int ranks;
  fs::path from;  // a checkpoint to go on from; empty: the calibrated start
  fs::path start, end;
};
void run_world(const std::string& model, const World& world) {
  const int port = free_port();
  const int good = run_ranks(world.ranks, 100s, [&, port](int rank) {
    std::unique_ptr<RendezvousServer> server;
    std::unique_ptr<ProcessGroup> group = solo_group("t");
    if (world.ranks > 1) {
      if (rank == 0) server = std::make_unique<RendezvousServer>(port);
      group = join_gloo_group({"127.0.0.1", port, "trainers", 30s}, rank, world.ranks);
    }
    const MeshGroups groups(*group);
    TrainerConfig config = make_config(model);
    config.rescale_every = 2;
    Trainer trainer(config, groups);
    if (!world.from.empty()) trainer.load(world.from);
    trainer.save(world.start, {0, 0, 0});
    const auto records = oracle_records(model);
    const auto share = share_records(pointers(records), rank, world.ranks);
    for (int step = 0; step < 3; ++step) trainer.train_records(share);
    trainer.save(world.end, {3, 0, 0});
  });
  ASSERT_EQ(good, world.ranks);
}

TEST(HeldScalesOfRanks, StartAndResumeInEveryLayoutWithTheSameBits) {
  for (const std::string model : {"dense_untied", "moe_norm"}) {
    const TempFolder folder;
    const auto place = [&](const std::string& name) { return folder.path / name; };
    run_world(model, {1, {}, place("1"), place("1-end")});
    run_world(model, {3, {}, place("3"), place("3-end")});
    run_world(model, {2, place("3-end"), place("3-to-2"), place("3-to-2-end")});
    run_world(model, {1, place("3-end"), place("3-to-1"), place("3-to-1-end")});
    const auto same = [&](const std::string& a, const std::string& b) {
      const auto first = digest_checkpoint(place(a)), second = digest_checkpoint(place(b));
      EXPECT_EQ(first.state_sha256, second.state_sha256) << a << " " << b;
      EXPECT_EQ(first.weights_sha256, second.weights_sha256) << a << " " << b;
    };
    same("1", "3");
    same("3-end", "3-to-2");
    same("3-end", "3-to-1");
    EXPECT_NE(digest_checkpoint(place("1")).state_sha256,
              digest_checkpoint(place("1-end")).state_sha256);
    EXPECT_EQ(digest_checkpoint(place("3-to-2-end")).progress.updates, 6);
  }
}

struct Start {
  std::string model;
  std::string grid;
  quant::CellPlace place = quant::CellPlace::kShifted;
};
class CalibratedStartOf : public ::testing::TestWithParam<Start> {};

TEST_P(CalibratedStartOf, PacksIntoTheCheckpointsBytes) {
  const auto [name, grid, place] = GetParam();
  const Solo solo;
  const TempFolder folder;
  TrainerConfig config = make_config(name, kModels / name / grid);
  config.calibrated_place = place;
  Trainer trainer(config, solo.groups);
  const ParameterTable& table = trainer.spec().table;
  const auto checkpoint = load_weights(HfDirectory(config.calibrated), table);
  trainer.save(folder.path / "step", {0, 1, 0});
  const CheckpointReader reader(folder.path / "step");
  const HfDirectory model(config.model);
  int64_t kept = 0, moved = 0, lowest = 0;
  for (int64_t p = 0; p < table.size(); ++p) {
    const StoredParameter& want = checkpoint->stored(p);
    const StoredParameter& first = trainer.serving_shards()->parameters[static_cast<size_t>(p)];
    const StoredParameter exported = reader.served(p, kernels::Serial());
    for (const StoredParameter* got : {&first, &exported}) {
      EXPECT_EQ(got->words, want.words) << table.at(p).name();
      EXPECT_EQ(got->scale, want.scale) << table.at(p).name();
      EXPECT_EQ(got->bf16, want.bf16) << table.at(p).name();
    }
    if (!config.train_plan.quantized[static_cast<size_t>(p)]) continue;
    const std::vector<uint16_t> weight = load_bf16(model, table.at(p));
    std::vector<float> master;
    reader.read_rows("master", p, {0, table.at(p).rows}, master);
    const auto group = static_cast<size_t>(config.train_plan.config.group_size);
    for (size_t i = 0; i < weight.size(); ++i) {
      const int code = quant::int4_at(want.words[i / 8], static_cast<int>(i % 8));
      const uint16_t start = quant::start_master(weight[i], code, want.scale[i / group], place);
      ASSERT_EQ(quant::float_to_bf16(master[i]), start) << table.at(p).name() << " " << i;
      ASSERT_EQ(quant::bf16_to_float(start), master[i]);
      (start == weight[i] ? kept : moved) += 1;
      lowest += code == -8 ? 1 : 0;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_EQ(lowest > 1000, grid == "int4_llmcompressor");
}

INSTANTIATE_TEST_SUITE_P(
    Models, CalibratedStartOf,
    ::testing::Values(Start{"dense_untied", "int4_llmcompressor"},
                      Start{"dense_untied", "int4_llmcompressor", quant::CellPlace::kNearest},
                      Start{"dense_untied", "int4_sym7"}, Start{"dense_tied", "int4_llmcompressor"},
                      Start{"moe_norm", "int4_llmcompressor"}, Start{"moe_norm", "int4_sym7"},
                      Start{"moe_mixed", "int4_sym7"}, Start{"llama_smol", "int4_sym7"}),
    [](const auto& param) {
      const char* place = param.param.place == quant::CellPlace::kNearest ? "_nearest" : "";
      return param.param.model + "_" + param.param.grid + place;
    });

// Masters and held scales of a trainer, as it saves them.
struct State {
  State(Trainer& trainer, const fs::path& directory) {
    trainer.save(directory, {0, 0, 0});
    const CheckpointReader reader(directory);
    EXPECT_TRUE(reader.holds_scales());
    const ParameterTable& table = reader.spec().table;
    for (int64_t p = 0; p < table.size(); ++p) {
      if (!reader.serve_plan().quantized[static_cast<size_t>(p)]) continue;
      const RowShard all{0, table.at(p).rows};
      reader.read_rows("master", p, all, master[p]);
      reader.read_scales(p, all, scale[p]);
    }
  }
  std::map<int64_t, std::vector<float>> master;
  std::map<int64_t, std::vector<uint16_t>> scale;
};

TEST(HeldScales, UpdatesTooSmallForBf16AreKept) {
  const Solo solo;
  const TempFolder folder;
  TrainerConfig config = make_config("dense_untied");
  config.optimizer.lr = 1e-6;
  config.optimizer.weight_decay = 0.0;
  Trainer trainer(config, solo.groups);
  const State before(trainer, folder.path / "before");
  const auto records = oracle_records("dense_untied");
  const SupervisedMetrics metrics = trainer.train_records(pointers(records));
  const State after(trainer, folder.path / "after");
  int64_t moved = 0, same_cast = 0, all = 0;
  for (const auto& [p, masters] : before.master) {
    for (size_t i = 0; i < masters.size(); ++i) {
      const float now = after.master.at(p)[i];
      moved += now != masters[i] ? 1 : 0;
      same_cast += quant::float_to_bf16(now) == quant::float_to_bf16(masters[i]) ? 1 : 0;
      ++all;
    }
  }
  EXPECT_GT(moved, all * 9 / 10);
  EXPECT_GT(same_cast, all * 9 / 10) << "BF16 masters would have lost them";
  EXPECT_EQ(after.scale, before.scale);
  ASSERT_TRUE(metrics.held);
  EXPECT_FALSE(metrics.held->rescale_jump);
}

TEST(HeldScales, LargeUpdatesStayInTheRangeOfTheCodesAndAreCounted) {
  for (const std::string name : {"dense_untied", "moe_norm"}) {
    const Solo solo;
    const TempFolder folder;
    TrainerConfig config = make_config(name);
    config.optimizer.lr = 0.02;
    Trainer trainer(config, solo.groups);
    const State before(trainer, folder.path / "before");
    const auto records = oracle_records(name);
    const SupervisedMetrics metrics = trainer.train_records(pointers(records));
    const State after(trainer, folder.path / "after");
    EXPECT_EQ(after.scale, before.scale);
    EXPECT_EQ(metrics.changes.total().changed_scales, 0);
    EXPECT_GT(metrics.changes.total().changed_codes, 0);
    const auto group = static_cast<size_t>(config.train_plan.config.group_size);
    int64_t at_bounds = 0;
    for (const auto& [p, masters] : after.master) {
      const StoredParameter& packed = trainer.serving_shards()->parameters[static_cast<size_t>(p)];
      for (size_t i = 0; i < masters.size(); ++i) {
        const auto range = quant::held_range(after.scale.at(p)[i / group]);
        const quant::HeldValue held = quant::hold(masters[i], range);
        ASSERT_FALSE(held.projected);
        ASSERT_EQ(quant::int4_at(packed.words[i / 8], static_cast<int>(i % 8)),
                  quant::quantize_held(held.value, range.scale));
        at_bounds += masters[i] == range.first || masters[i] == range.last ? 1 : 0;
      }
    }
    ASSERT_TRUE(metrics.held);
    EXPECT_GT(metrics.held->projected, 100);
    EXPECT_GE(at_bounds, metrics.held->projected) << "what was projected lies on a bound";
  }
}

TEST(HeldScales, AreDerivedAnewWhenDueAndHeldAgain) {
  const Solo solo;
  const TempFolder folder;
  TrainerConfig config = make_config("moe_norm");
  config.rescale_every = 2;
  Trainer trainer(config, solo.groups);
  const auto records = oracle_records("moe_norm");
  const auto step = [&] { return *trainer.train_records(pointers(records)).held; };
  const State start(trainer, folder.path / "0");
  EXPECT_FALSE(step().rescale_jump);
  EXPECT_EQ(State(trainer, folder.path / "1").scale, start.scale);
  const HeldStats due = step();
  ASSERT_TRUE(due.rescale_jump);
  EXPECT_GT(*due.rescale_jump, 0.01) << "sym7 is another grid than llm-compressor's";
  EXPECT_LT(*due.rescale_jump, 1.0);
  const State derived(trainer, folder.path / "2");
  EXPECT_NE(derived.scale, start.scale);
  for (const auto& [p, masters] : derived.master) {
    const ParameterSpec& parameter = trainer.spec().table.at(p);
    StoredParameter sym7;
    quantize_parameter(parameter, masters.data(), config.train_plan, kernels::Serial(), sym7);
    const StoredParameter& packed = trainer.serving_shards()->parameters[static_cast<size_t>(p)];
    EXPECT_EQ(packed.words, sym7.words) << parameter.name();
    EXPECT_EQ(packed.scale, sym7.scale) << parameter.name();
  }
  EXPECT_FALSE(step().rescale_jump);
  EXPECT_EQ(State(trainer, folder.path / "3").scale, derived.scale);
}

TEST(HeldScales, ResumeContinuesBitForBit) {
  for (const int64_t rescale_every : {0, 2}) {
    for (const std::string name : {"dense_tied", "moe_norm"}) {
      const Solo solo;
      const TempFolder folder;
      TrainerConfig config = make_config(name);
      config.optimizer.lr = 3e-3;
      config.rescale_every = rescale_every;
      const auto records = oracle_records(name);
      const auto train = [&](Trainer& trainer) {
        for (int step = 0; step < 3; ++step) trainer.train_records(pointers(records));
      };
      Trainer whole(config, solo.groups);
      train(whole);
      whole.save(folder.path / "middle", {3, 0, 0});
      train(whole);
      whole.save(folder.path / "whole", {6, 0, 0});
      Trainer resumed(config, solo.groups);
      EXPECT_EQ(resumed.load(folder.path / "middle").updates, 3);
      train(resumed);
      resumed.save(folder.path / "resumed", {6, 0, 0});
      const auto want = digest_checkpoint(folder.path / "whole");
      const auto got = digest_checkpoint(folder.path / "resumed");
      EXPECT_EQ(got.state_sha256, want.state_sha256) << name << " " << rescale_every;
      EXPECT_EQ(got.weights_sha256, want.weights_sha256) << name << " " << rescale_every;
    }
  }
}

// The message of the error that `body` throws.
template <typename Body>
std::string refusal(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_says(const std::string& message, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << word << " in: " << message;
  }
}

TEST(HeldScales, ACheckpointOfTheOtherKindIsRefused) {
  const Solo solo;
  const TempFolder folder;
  const TrainerConfig held = make_config("dense_untied");
  TrainerConfig derived = held;
  derived.calibrated.clear();
  Trainer holds(held, solo.groups), derives(derived, solo.groups);
  holds.save(folder.path / "held", {1, 0, 0});
  derives.save(folder.path / "derived", {1, 0, 0});
  const auto meta = [&](const char* name) {
    return read_json_file(folder.path / name / "meta.json");
  };
  EXPECT_EQ(meta("held")["format_version"], kHeldCheckpointFormatVersion);
  EXPECT_EQ(meta("held")["scales"], "held");
  EXPECT_EQ(meta("derived")["format_version"], kCheckpointFormatVersion);
  EXPECT_FALSE(meta("derived").contains("scales"));
  EXPECT_FALSE(CheckpointReader(folder.path / "derived").holds_scales());
  expect_says(refusal([&] { derives.load(folder.path / "held"); }),
              {"held' is of a run that holds its scales", "this one derives", "qat.start"});
  expect_says(refusal([&] { holds.load(folder.path / "derived"); }),
              {"derived' is of a run that derives its scales", "this one holds", "qat.start"});
}

TEST(HeldScales, ACheckpointOfOtherGroupsIsRefused) {
  const Solo solo;
  const TempFolder folder;
  const TrainerConfig config = make_config("dense_untied");
  Trainer trainer(config, solo.groups);
  trainer.save(folder.path / "step", {1, 0, 0});
  const int64_t group = config.train_plan.config.group_size;
  ShardLayout other{&trainer.spec().table, config.train_plan, Mesh{1}, 0};
  other.plan.config.group_size = 2 * group;
  OptimizerState state(other);
  state.held_scale.resize(state.master.size());
  expect_says(refusal([&] { load_train_checkpoint(folder.path / "step", other, state); }),
              {"groups of " + std::to_string(group), "groups of " + std::to_string(2 * group)});
}

// Overwrites one 16-bit element of a tensor in a file.
void poke(const fs::path& path, const std::string& tensor, int64_t element, uint16_t bits) {
  std::string bytes = read_file(path, 64 << 20);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  const Json header = parse_json(bytes.substr(8, header_bytes), path.string());
  const size_t begin = 8 + header_bytes + header[tensor]["data_offsets"][0].get<size_t>();
  std::memcpy(bytes.data() + begin + static_cast<size_t>(element) * 2, &bits, sizeof bits);
  write_file_atomically(path, bytes);
}

TEST(HeldScales, ADamagedScaleOfACheckpointIsRefused) {
  const Solo solo;
  const TempFolder folder;
  Trainer trainer(make_config("dense_untied"), solo.groups);
  trainer.save(folder.path / "step", {1, 0, 0});
  const std::string module = "model.layers.1.mlp.down_proj";
  poke(folder.path / "step/rank-000-of-001.safetensors", "scale/" + module + ".weight", 7, 0x3c00);
  expect_says(refusal([&] { trainer.load(folder.path / "step"); }),
              {"rank-000-of-001", "scale/" + module + ".weight", "not the bytes that were saved"});
}

TEST(HeldScales, WhatDoesNotFitTheStartIsRefusedByName) {
  const Solo solo;
  const fs::path original = kModels / "dense_untied/int4_llmcompressor";
  const std::string module = "model.layers.0.mlp.up_proj";
  const auto start_with = [&](const std::string& tensor, int64_t element, uint16_t bits) {
    const TempFolder folder;
    fs::copy(original, folder.path / "int4");
    poke(folder.path / "int4/model.safetensors", tensor, element, bits);
    return refusal(
        [&] { Trainer(make_config("dense_untied", folder.path / "int4"), solo.groups); });
  };
  const TrainerConfig config = make_config("dense_untied");
  const int64_t groups_per_row = HfDirectory(original).tensor(module + ".weight_scale").shape[1];
  for (const uint16_t scale : {0x0000, 0x8000, 0xbf80, 0x7f80, 0x7fc0, 0x7df1}) {
    expect_says(start_with(module + ".weight_scale", 3 * groups_per_row + 1, scale),
                {module + ".weight_scale", "row 3, group 1"});
  }
  // The largest scale that can be held starts; what it multiplies is another matter.
  EXPECT_EQ(start_with(module + ".weight_scale", 0, 0x7df0), "nothing was thrown");
  expect_says(start_with("model.norm.weight", 5, 0x4000),
              {"model.norm.weight", "made from other weights"});
  TrainerConfig other = config;
  other.train_plan.config.group_size = other.serve_plan.config.group_size =
      config.train_plan.config.group_size == 32 ? 64 : 32;
  expect_says(refusal([&] { Trainer(other, solo.groups); }),
              {"int4_llmcompressor", "not quantized as the run is"});
}

}  // namespace
}  // namespace nibble
