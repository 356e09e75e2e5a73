#include "benchmarks/pair_mesh.h"

#include <random>

#include "benchmarks/model_shapes.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {

std::string mesh_name(const Mesh& mesh) {
  if (mesh.world == 1) return "one rank";
  std::string name;
  if (mesh.tensor > 1) name = fmt::format("tensor {}", mesh.tensor);
  if (mesh.expert > 1) {
    name += fmt::format("{}expert {}", name.empty() ? "" : ", ", mesh.expert);
  }
  return name.empty() ? fmt::format("data {}", mesh.world) : name;
}

std::vector<Mesh> meshes_of_two(const ModelConfig& config) {
  std::vector<Mesh> meshes = {Mesh{2}, Mesh{2, 2, 1}};
  if (config.num_moe_layers() > 0) {
    meshes.push_back(Mesh{2, 1, 2});
    meshes.push_back(Mesh{2, 2, 2});
  }
  return meshes;
}

MeshSeat::MeshSeat(const Member& member, const Mesh& mesh, int rank, const std::string& name) {
  host = mesh.world == 1 ? solo_group(name) : member.join_host(name, rank, mesh.world);
  all = mesh.world == 1 ? solo_group(name) : member.join(name, rank, mesh.world);
  groups = std::make_unique<MeshGroups>(mesh, *all,
                                        [&member](const std::string& group, int place, int world) {
                                          return member.join(group, place, world);
                                        });
}

void write_model_directory(const std::filesystem::path& directory, const std::string& model,
                           int64_t layers) {
  std::filesystem::create_directories(directory);
  write_file_atomically(directory / "config.json", config_json(shape_of(model, layers)));
}

TrainerConfig random_trainer(const std::filesystem::path& directory, int64_t group_size) {
  TrainerConfig config;
  config.model = directory;
  config.init = ModelInit::kRandom;
  config.seed = 7;
  const ModelSpec spec =
      make_model_spec(parse_model_config(read_hf_config(directory), directory.string()));
  config.train_plan = group_size > 0 ? usual_plan(spec, group_size) : plan_bf16(spec.table);
  config.serve_plan = config.train_plan;
  config.algorithm.reference = ReferenceMode::kNever;
  config.algorithm.kl_metric_every = 0;
  config.algorithm.loss.objective = PolicyObjective::kSft;
  config.algorithm.loss.aggregation = Aggregation::kTokenMean;
  config.optimizer.lr = 1e-4;
  return config;
}

std::vector<int32_t> random_ids(int64_t vocab, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
  }
  return ids;
}

}  // namespace nibble
