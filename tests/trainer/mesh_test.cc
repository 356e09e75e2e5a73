// However ranks share a model, they train it as one rank does: on the CPU over Gloo, and on one GPU
// over NCCL.
#include <gtest/gtest.h>

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <cstring>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "tests/trainer/mesh_member.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::vector<int32_t> kIds = {5, 9, 200, 31, 77, 13, 2};

void write_floats(const fs::path& path, std::span<const float> values) {
  write_file_atomically(path, {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
}

// What a run leaves: a checkpoint, and files beside it.
fs::path beside(const fs::path& out, const char* what) { return out.string() + what; }

// A model with tied embeddings that two tensor ranks can share; none of the checkpoints is one.
constexpr const char* kTied = "tied";

TrainerConfig config_of(const std::string& model, const fs::path& root) {
  if (model != kTied) return make_config(model, Mode::kQat);
  TrainerConfig config = make_config("dense_untied", Mode::kQat);
  config.model = root / "model";
  config.init = ModelInit::kRandom;
  config.algorithm.reference = ReferenceMode::kNever;
  config.algorithm.loss.kl_coef = 0.0;
  const ParameterTable table =
      model_parameters(parse_model_config(read_hf_config(config.model), config.model.string()));
  config.train_plan = config.serve_plan = plan_quantization(table, QuantTargets::kLinear, 4, 32);
  return config;
}

void write_tied_model(const fs::path& directory) {
  OrderedJson config = parse_ordered_json(
      read_file(test_root() / "tests/oracles/models/dense_untied/bf16/config.json", 1 << 20), "c");
  config["tie_word_embeddings"] = true;
  fs::create_directories(directory);
  write_file_atomically(directory / "config.json", config.dump());
}

struct Run {
  std::string model;
  Wire wire = Wire::kGloo;
  Mesh mesh;
  fs::path out;
  fs::path start;  // a checkpoint whose log-probabilities are taken; empty: the run's own
};

// Chosen experts of a sequence, and its log-probabilities with other experts in their place (R3).
std::vector<float> route_and_replay(const Run& run, const MeshMember& member) {
  const TrainerConfig config = config_of(run.model, run.out.parent_path());
  const ModelSpec spec =
      make_model_spec(parse_model_config(read_hf_config(config.model), run.model));
  const ops::Backend& backend = member.device();
  const ShardLayout layout{&spec.table, config.train_plan, run.mesh, member.all->rank()};
  OptimizerState state(layout, backend.kind());
  load_train_checkpoint(run.start.empty() ? run.out : run.start, layout, state);
  PackBuffers buffers;
  GatheredWeights weights(layout, *member.groups, backend.weight_kernels());
  weights.set_shards(pack_shards(layout, state.master, backend.weight_kernels(), buffers));
  const auto rope =
      backend.place(make_rope_table(spec.config.rope, spec.config.head_dim, config.max_positions));
  const PackedBatch batch = pack_sequence(kIds);
  const ops::RankGroups ranks{member.groups->tensor(), member.groups->expert(),
                              member.groups->context()};
  const at::NoGradGuard no_grad;
  const auto pass = [&](std::vector<at::Tensor> replay) {
    weights.begin_pass();
    return run_log_probs(spec, weights, rope, {batch, std::move(replay), &backend, ranks}, 1.0f,
                         ActivationType::kFloat32);
  };
  std::vector<float> out;
  const auto append = [&out](const at::Tensor& tensor) {
    const at::Tensor values = tensor.to(at::kFloat).cpu().contiguous();
    out.insert(out.end(), values.const_data_ptr<float>(),
               values.const_data_ptr<float>() + values.numel());
  };
  std::vector<at::Tensor> replay;
  for (const at::Tensor& expert : pass({}).routes) {
    append(expert);
    replay.push_back(expert.add(1).remainder(spec.config.moe.num_experts));
  }
  require(std::ssize(replay) == spec.config.num_moe_layers(), "routes of every layer");
  append(pass(replay).log_prob);
  return out;
}

// Two updates. The second has a group too few for every rank to have one.
void train(const Run& run, const MeshMember& member) {
  const int rank = member.all->rank();
  const TrainerConfig config = config_of(run.model, run.out.parent_path());
  Trainer trainer = member.trainer(config);
  auto samples = make_groups(6, 6);
  fill_log_probs(trainer, samples);
  std::vector<float> losses;
  for (int step = 0; step < 2; ++step) {
    if (step == 1) samples.resize(1);
    const std::vector<SampleGroup> mine = member.share(samples);
    const TrainMetrics metrics = trainer.train(std::span(&mine, 1), step);
    require(step > 0 || metrics.log_prob_diff_max == 0.0, "gap at step 0");
    int64_t want = 0;
    for (const SampleGroup& group : samples) want += group_tokens(group);
    require(metrics.computed_tokens == want, "each token counts once");
    for (const double value :
         {metrics.loss.loss, metrics.entropy, metrics.kl_reference, metrics.update.grad_norm}) {
      losses.push_back(static_cast<float>(value));
    }
  }
  trainer.save(run.out, {2, 2, 0});
  Trainer again = member.trainer(config);
  again.load(run.start.empty() ? run.out : run.start);
  const auto log_probs = again.log_probs(kIds);
  const auto routed = route_and_replay(run, member);
  if (rank != 0) return;
  write_floats(beside(run.out, ".routes"), routed);
  write_floats(beside(run.out, ".losses"), losses);
  write_floats(beside(run.out, ".logprobs"), log_probs);
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

class TrainerMesh : public ::testing::TestWithParam<std::tuple<const char*, Wire>> {
 protected:
  void SetUp() override {
    if (std::get<Wire>(GetParam()) == Wire::kGloo) return;
    if (!has_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

TEST_P(TrainerMesh, AnyMeshTrainsAsOneRankToRoundingAndItsLogProbsAreTheSameBits) {
  const auto [name_of_model, wire] = GetParam();
  const std::string model = name_of_model;
  // Gradients that ranks sum are BF16 on a GPU; the second update follows from the first.
  const double tolerance = wire == Wire::kGloo ? 1e-5 : 2e-2;
  std::string name = (fs::temp_directory_path() / "nibble_mesh_XXXXXX").string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const fs::path root = name;
  write_tied_model(root / "model");
  const fs::path one = root / "one";
  ASSERT_EQ(train_in_children({model, wire, {1}, one, {}}), 1);
  const TrainerConfig trainer = config_of(model, root);
  const ModelConfig config = parse_model_config(read_hf_config(trainer.model), model);
  const ModelSpec spec = make_model_spec(config);
  const ShardLayout layout{&spec.table, trainer.train_plan, Mesh{1}, 0};
  const auto load = [&](const fs::path& path) {
    OptimizerState state(layout);
    load_train_checkpoint(path, layout, state);
    return state;
  };
  const OptimizerState expected = load(one);
  int tried = 0;
  for (const Mesh mesh :
       {Mesh{2}, Mesh{2, 2, 1}, Mesh{2, 1, 2}, Mesh{2, 2, 2}, Mesh{3}, Mesh{4, 2, 1}, Mesh{4, 2, 2},
        Mesh{4, 2, 4}, Mesh{4, 1, 2}, Mesh{2, 1, 1, 2}, Mesh{3, 1, 1, 3}, Mesh{4, 1, 1, 2},
        Mesh{4, 2, 1, 2}, Mesh{2, 1, 2, 2}, Mesh{4, 2, 2, 2}}) {
    if (mesh_problem(config, mesh)) continue;
    ++tried;
    SCOPED_TRACE(fmt::format("{} ranks, tensor {}, expert {}, context {}", mesh.world, mesh.tensor,
                             mesh.expert, mesh.context));
    const fs::path out =
        root / fmt::format("{}-{}-{}-{}", mesh.world, mesh.tensor, mesh.expert, mesh.context);
    ASSERT_EQ(train_in_children({model, wire, mesh, out, one}), mesh.world);
    EXPECT_EQ(read_file(beside(out, ".logprobs"), 1000), read_file(beside(one, ".logprobs"), 1000));
    EXPECT_EQ(read_floats(beside(out, ".routes")), read_floats(beside(one, ".routes")));
    const auto losses = read_floats(beside(out, ".losses"));
    const auto want = read_floats(beside(one, ".losses"));
    ASSERT_EQ(losses.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      const double allowed = (i < losses.size() / 2 ? 1 : 5) * tolerance;
      EXPECT_NEAR(losses[i], want[i], allowed * std::fabs(want[i]) + 1e-7) << "figure " << i;
    }
    const OptimizerState state = load(out);
    double worst = 0.0, largest = 0.0;
    for (size_t p = 0; p < state.m.size(); ++p) {
      for (size_t i = 0; i < state.m[p].size(); ++i) {
        worst = std::max<double>(worst, std::fabs(state.m[p][i] - expected.m[p][i]));
        largest = std::max<double>(largest, std::fabs(expected.m[p][i]));
      }
    }
    EXPECT_LT(worst, 10 * tolerance * largest) << "first moments";
    EXPECT_EQ(digest_checkpoint(out).progress.updates, 2);
  }
  EXPECT_GE(tried, config.num_moe_layers() > 0 ? 15 : 8);
  fs::remove_all(root);
}

INSTANTIATE_TEST_SUITE_P(Models, TrainerMesh,
                         ::testing::Combine(::testing::Values("dense_untied", kTied, "moe_norm",
                                                              "moe_mixed"),
                                            ::testing::Values(Wire::kGloo, Wire::kNccl)),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param)) +
                                  (std::get<1>(param.param) == Wire::kGloo ? "_gloo" : "_nccl");
                         });

}  // namespace
}  // namespace nibble
