// What the parts of gpu_pair_bench will move and hold, from shapes alone.
#include "benchmarks/figure.h"
#include "benchmarks/model_shapes.h"
#include "benchmarks/pair_mesh.h"
#include "benchmarks/pair_parts.h"
#include "benchmarks/pair_world.h"
#include "core/base/clock.h"
#include "trainer/memory_plan.h"

namespace nibble {
namespace {

double gib(int64_t bytes) {
  return static_cast<double>(bytes) / static_cast<double>(int64_t{1} << 30);
}

void describe_sync(const std::string& model, int64_t group) {
  const Stopwatch watch;
  const PairWorld world(model, group);
  for (const int64_t mib : {8, 128}) {
    const SyncPlan plan = world.plan(mib << 20);
    Figure("sync_plan")
        .set("model", model)
        .set("group", group)
        .set("bucket_mib", mib)
        .set("bytes", plan.bytes)
        .set("pieces", plan.edges.at(0).slices.size())
        .set("transfers", num_transfers(plan))
        .number("planned_in_ms", watch.elapsed_ms())
        .print();
  }
}

void describe_training(const std::filesystem::path& root, const std::string& model,
                       int64_t layers) {
  const auto directory = root / ("plan-" + model);
  write_model_directory(directory, model, layers);
  std::vector<Mesh> meshes = {Mesh{1}};
  for (const Mesh& mesh : meshes_of_two(shape_of(model, layers))) meshes.push_back(mesh);
  for (const Mesh& mesh : meshes) {
    for (const int64_t group : {128, 0}) {
      const TrainerMemory memory =
          plan_trainer_memory(random_trainer(directory, group), mesh, 0, DeviceKind::kCuda);
      Figure("train_plan")
          .set("model", model)
          .set("layers", layers)
          .set("mesh", mesh_name(mesh))
          .set("weights", group > 0 ? "int4" : "bf16")
          .number("state_gib",
                  gib(memory.master_bytes + memory.moment_bytes + memory.gradient_bytes))
          .number("packed_gib", gib(memory.packed_bytes))
          .number("ring_gib", gib(memory.ring_bytes))
          .number("activation_gib", gib(memory.activation_bytes))
          .number("total_gib", gib(memory.total()))
          .print();
    }
  }
}

}  // namespace

void describe_plans(const PairOptions& options) {
  for (const char* model : {"qwen3-4b", "30b-a3b"}) {
    for (const int64_t group : {128, 32}) describe_sync(model, group);
  }
  describe_training(options.directory, "qwen3-4b", options.dense_layers);
  describe_training(options.directory, "30b-a3b", options.moe_layers);
}

}  // namespace nibble
