#include "trainer/memory_plan.h"

#include <gtest/gtest.h>

#include "core/checkpoint/hf_directory.h"
#include "core/models/weights.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = NIBBLE_SOURCE_DIR "/tests/oracles/models";

struct Job {
  explicit Job(const std::string& name) : int4(kModels / name / "int4_sym7") {
    config.model = kModels / name / "bf16";
    table = model_parameters(parse_model_config(int4.config(), name));
    config.train_plan = config.serve_plan = checkpoint_plan(int4, table);
    config.algorithm.reference = ReferenceMode::kNever;
  }
  int64_t num_elements() const {
    int64_t elements = 0;
    for (const ParameterSpec& parameter : table.parameters) elements += parameter.num_elements();
    return elements;
  }
  HfDirectory int4;
  TrainerConfig config;
  ParameterTable table;
};

TEST(TrainerMemory, OfAllRanksIsTheStateAndTwoPackingsOfTheModel) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const Job job(name);
    const ResidentWeights whole(job.table, job.config.train_plan);
    for (const int world : {1, 2, 3}) {
      int64_t state = 0, packed = 0;
      for (int rank = 0; rank < world; ++rank) {
        const TrainerMemory memory = plan_trainer_memory(job.config, Mesh{world}, rank);
        state += memory.state_bytes;
        packed += memory.packed_bytes;
        EXPECT_EQ(memory.reference_bytes, 0);
        EXPECT_EQ(memory.ring_bytes > 0, world > 1);
        EXPECT_GT(memory.activation_bytes, 0);
      }
      EXPECT_EQ(state, 16 * job.num_elements());
      EXPECT_EQ(packed, 2 * whole.num_bytes());
    }
  }
}

TEST(TrainerMemory, AMeshGathersOnlyWhatARankUsesAndDoesNotOwn) {
  const Job job("moe_norm");
  const auto plan = [&](const Mesh& mesh) { return plan_trainer_memory(job.config, mesh, 0); };
  const TrainerMemory data = plan({2});
  const TrainerMemory expert = plan({2, 1, 2});
  const TrainerMemory tensor = plan({2, 2, 1});
  // Experts that a rank owns whole need no ring: the gathered bytes and four copies of gradients.
  int64_t experts = 0, cut = 0;
  for (const ParameterSpec& parameter : job.table.parameters) {
    if (parameter.layer != 0) continue;
    if (parameter.role == ParameterRole::kExpert) experts += parameter.num_elements();
    if (parameter.role == ParameterRole::kAttention) cut += parameter.num_elements();
  }
  const int64_t group = job.config.train_plan.config.group_size;
  const int64_t packed = experts / 2 + experts / group * 2;
  EXPECT_GT(experts, 0);
  EXPECT_GE(data.ring_bytes - expert.ring_bytes, 2 * 3 * packed + 2 * 4 * experts);
  EXPECT_GE(data.ring_bytes - tensor.ring_bytes, 2 * 3 * 2 * cut + 2 * 4 * cut);
  EXPECT_LT(tensor.ring_bytes, data.ring_bytes);
  for (const Mesh mesh : {Mesh{2, 1, 2}, Mesh{4, 2, 4}}) {
    int64_t state = 0;
    for (int rank = 0; rank < mesh.world; ++rank) {
      state += plan_trainer_memory(job.config, mesh, rank).state_bytes;
    }
    EXPECT_EQ(state, 16 * job.num_elements());
  }
}

TEST(TrainerMemory, OffloadLeavesGradientsAndARingOfTheReference) {
  Job job("dense_untied");
  job.config.algorithm.reference = ReferenceMode::kAlways;
  const TrainerMemory before = plan_trainer_memory(job.config, Mesh{1}, 0);
  job.config.optimizer.offload = job.config.offload_reference = true;
  const TrainerMemory after = plan_trainer_memory(job.config, Mesh{1}, 0);
  EXPECT_EQ(before.state_bytes, 16 * job.num_elements());
  EXPECT_EQ(after.state_bytes, 4 * job.num_elements());
  EXPECT_EQ(before.ring_bytes, 0);
  EXPECT_EQ(after.reference_bytes, 0);
  // Two layers and what is in none: all of a model of two.
  EXPECT_GT(after.ring_bytes, 0);
  EXPECT_LE(after.ring_bytes, before.reference_bytes);
  EXPECT_EQ(after.packed_bytes, before.packed_bytes);
}

TEST(TrainerMemory, KnowsHeldScalesAndTheirDerivation) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    Job job(name);
    const TrainerMemory derived = plan_trainer_memory(job.config, Mesh{1}, 0);
    job.config.calibrated = job.int4.path();
    const TrainerMemory held = plan_trainer_memory(job.config, Mesh{1}, 0);
    job.config.rescale_every = 5;
    const TrainerMemory rescaled = plan_trainer_memory(job.config, Mesh{1}, 0);
    const ResidentWeights whole(job.table, job.config.train_plan);
    int64_t scales = 0;
    for (const StoredParameter& stored : whole.parameters()) scales += stored.scale.num_bytes();
    EXPECT_GT(scales, 0);
    EXPECT_EQ(held.state_bytes, derived.state_bytes + scales);
    EXPECT_EQ(held.packed_bytes, derived.packed_bytes);
    EXPECT_EQ(rescaled.packed_bytes, derived.packed_bytes + whole.num_bytes());
    job.config.optimizer.offload = true;
    EXPECT_EQ(plan_trainer_memory(job.config, Mesh{1}, 0).state_bytes, 4 * job.num_elements());
  }
}

TEST(TrainerMemory, KnowsTheReferenceAndASecondPlan) {
  Job job("dense_untied");
  const int64_t packed = plan_trainer_memory(job.config, Mesh{1}, 0).packed_bytes;
  job.config.algorithm.reference = ReferenceMode::kAlways;
  job.config.train_plan = plan_bf16(job.table);
  const TrainerMemory memory = plan_trainer_memory(job.config, Mesh{1}, 0);
  EXPECT_EQ(memory.reference_bytes, 2 * job.num_elements());
  EXPECT_EQ(memory.packed_bytes, packed + 4 * job.num_elements());
}

}  // namespace
}  // namespace nibble
