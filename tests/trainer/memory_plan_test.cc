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

TrainerMemory plan(const Job& job, const Mesh& mesh, int rank = 0) {
  return plan_trainer_memory(job.config, mesh, rank, DeviceKind::kCuda);
}

// On the device.
int64_t state_bytes(const TrainerMemory& memory) {
  const bool is_here = memory.state_home == memory.device;
  return memory.gradient_bytes + (is_here ? memory.master_bytes + memory.moment_bytes : 0);
}

TEST(TrainerMemory, OfAllRanksIsTheStateAndTwoPackingsOfTheModel) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    const Job job(name);
    const ResidentWeights whole(job.table, job.config.train_plan);
    for (const int world : {1, 2, 3}) {
      int64_t state = 0, packed = 0;
      for (int rank = 0; rank < world; ++rank) {
        const TrainerMemory memory = plan(job, Mesh{world}, rank);
        state += state_bytes(memory);
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

TEST(TrainerMemory, ACriticIsASecondModelInBf16WithOnePackingAndItsOwnRing) {
  for (const int world : {1, 2}) {
    Job job("moe_norm");
    const TrainerMemory alone = plan(job, Mesh{world});
    job.config.critic.emplace();
    job.config.critic->model = kModels / "moe_norm/bf16";
    TrainerMemory both = plan(job, Mesh{world});
    int64_t elements = 0, total = 0;
    for (int rank = 0; rank < world; ++rank) {
      both = plan(job, Mesh{world}, rank);
      elements += (both.packed_bytes - alone.packed_bytes) / 2;
      total += state_bytes(both) - state_bytes(alone);
    }
    const ParameterTable table =
        model_parameters(value_model(parse_model_config(job.int4.config(), "moe_norm")));
    int64_t want = 0;
    for (const ParameterSpec& parameter : table.parameters) want += parameter.num_elements();
    // Norms and the head have one row, which only one rank owns.
    EXPECT_NEAR(elements, want, 0.01 * want);
    EXPECT_NEAR(total, 16 * want, 0.01 * 16 * want);
    EXPECT_EQ(both.ring_bytes > alone.ring_bytes, world > 1);
    EXPECT_EQ(both.checkpoint_bytes(), both.master_bytes + both.moment_bytes);
    const GatherBytes gathered = plan_critic_gathers(job.config, Mesh{world}, 0, 2);
    EXPECT_EQ(gathered.quantized, 0);
    EXPECT_EQ(gathered.plain > 0, world > 1);
    job.config.critic.reset();
    EXPECT_EQ(plan_critic_gathers(job.config, Mesh{world}, 0, 2).plain, 0);
  }
}

TEST(TrainerMemory, AMeshGathersOnlyWhatARankUsesAndDoesNotOwn) {
  const Job job("moe_norm");
  const TrainerMemory data = plan(job, {2});
  const TrainerMemory expert = plan(job, {2, 1, 2});
  const TrainerMemory tensor = plan(job, {2, 2, 1});
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
      state += state_bytes(plan(job, mesh, rank));
    }
    EXPECT_EQ(state, 16 * job.num_elements());
  }
}

TEST(TrainerMemory, OffloadLeavesGradientsAndARingOfTheReference) {
  Job job("dense_untied");
  job.config.algorithm.reference = ReferenceMode::kAlways;
  const TrainerMemory before = plan(job, Mesh{1});
  job.config.optimizer.offload = job.config.offload_reference = true;
  const TrainerMemory after = plan(job, Mesh{1});
  EXPECT_EQ(state_bytes(before), 16 * job.num_elements());
  EXPECT_EQ(state_bytes(after), 4 * job.num_elements());
  EXPECT_EQ(before.ring_bytes, 0);
  EXPECT_EQ(after.reference_home, DeviceKind::kCudaHost);
  EXPECT_EQ(after.bytes_in(DeviceKind::kCudaHost),
            12 * job.num_elements() + before.reference_bytes);
  // Two layers and what is in none: all of a model of two.
  EXPECT_GT(after.ring_bytes, 0);
  EXPECT_LE(after.ring_bytes, before.reference_bytes);
  EXPECT_EQ(after.packed_bytes, before.packed_bytes);
}

TEST(TrainerMemory, KnowsHeldScalesAndTheirDerivation) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    Job job(name);
    const TrainerMemory derived = plan(job, Mesh{1});
    job.config.calibrated = job.int4.path();
    const TrainerMemory held = plan(job, Mesh{1});
    job.config.rescale_every = 5;
    const TrainerMemory rescaled = plan(job, Mesh{1});
    const ResidentWeights whole(job.table, job.config.train_plan);
    int64_t scales = 0;
    for (const StoredParameter& stored : whole.parameters()) scales += stored.scale.num_bytes();
    EXPECT_GT(scales, 0);
    EXPECT_EQ(state_bytes(held), state_bytes(derived) + scales);
    EXPECT_EQ(held.packed_bytes, derived.packed_bytes);
    EXPECT_EQ(rescaled.packed_bytes, derived.packed_bytes + whole.num_bytes());
    job.config.optimizer.offload = true;
    EXPECT_EQ(state_bytes(plan(job, Mesh{1})), 4 * job.num_elements());
  }
}

TEST(TrainerMemory, KnowsTheTypeOfMomentsAndMappedFiles) {
  Job job("dense_untied");
  job.config.optimizer.state = MomentType::kBf16;
  EXPECT_EQ(state_bytes(plan(job, Mesh{1})), 12 * job.num_elements());
  job.config.optimizer.mapped_in = "/tmp";
  const TrainerMemory mapped = plan_trainer_memory(job.config, Mesh{1}, 0, DeviceKind::kCpu);
  EXPECT_EQ(mapped.bytes_in(DeviceKind::kMappedFile), 8 * job.num_elements());
  EXPECT_EQ(state_bytes(mapped), 4 * job.num_elements());
}

TEST(TrainerMemory, AMarginIsForUnevenExpertsAndForGpus) {
  const Job job("moe_norm");
  const auto on_cpu = [&](const Mesh& mesh) {
    return plan_trainer_memory(job.config, mesh, 0, DeviceKind::kCpu);
  };
  EXPECT_EQ(on_cpu({2}).margin_bytes, 0);
  EXPECT_GT(on_cpu({2, 1, 2}).margin_bytes, 0);
  const TrainerMemory gpu = plan(job, {2});
  EXPECT_GT(gpu.margin_bytes, 0);
  EXPECT_EQ(gpu.total(), gpu.bytes_in(DeviceKind::kCuda) + gpu.margin_bytes);
}

TEST(TrainerMemory, WhatIsComputedAgainIsNotKept) {
  for (const char* name : {"dense_untied", "moe_norm"}) {
    Job job(name);
    const auto activations = [&](Recompute recompute) {
      job.config.recompute = recompute;
      return plan(job, {1}).activation_bytes;
    };
    EXPECT_LT(activations(Recompute::kSelective), activations(Recompute::kNone));
    EXPECT_LT(activations(Recompute::kFull), activations(Recompute::kSelective));
  }
}

TEST(TrainerMemory, AdaptersHaveStateAndTwoPackingsTheBaseOneAndTheReferenceIsTheModels) {
  Job job("dense_untied");
  job.config.algorithm.reference = ReferenceMode::kAlways;
  const TrainerMemory whole = plan(job, Mesh{1});
  job.config.lora = LoraShape{32, 32.0, LoraTargets::kLinear};
  job.config.base = job.int4.path();
  ModelConfig model = parse_model_config(job.int4.config(), "int4");
  model.lora = job.config.lora;
  const ParameterTable table = model_parameters(model);
  job.config.train_plan = job.config.serve_plan = checkpoint_plan(job.int4, table);
  int64_t adapters = 0;
  for (const ParameterSpec& p : table.parameters) adapters += p.is_frozen ? 0 : p.num_elements();
  for (const int world : {1, 2, 3}) {
    int64_t state = 0, packed = 0, reference = 0;
    for (int rank = 0; rank < world; ++rank) {
      const TrainerMemory memory = plan(job, Mesh{world}, rank);
      state += state_bytes(memory);
      packed += memory.packed_bytes;
      reference += memory.reference_bytes;
    }
    EXPECT_EQ(state, 16 * adapters);
    EXPECT_EQ(packed, whole.packed_bytes / 2 + 2 * 2 * adapters);
    EXPECT_EQ(reference, whole.reference_bytes);
  }
  EXPECT_GT(plan(job, Mesh{1}).activation_bytes, whole.activation_bytes);
}

TEST(TrainerMemory, KnowsTheReferenceAndASecondPlan) {
  Job job("dense_untied");
  const int64_t packed = plan(job, Mesh{1}).packed_bytes;
  job.config.algorithm.reference = ReferenceMode::kAlways;
  job.config.train_plan = plan_bf16(job.table);
  const TrainerMemory memory = plan(job, Mesh{1});
  EXPECT_EQ(memory.reference_bytes, 2 * job.num_elements());
  EXPECT_EQ(memory.packed_bytes, packed + 4 * job.num_elements());
}

}  // namespace
}  // namespace nibble
