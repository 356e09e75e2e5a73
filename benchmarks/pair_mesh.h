#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "benchmarks/pair_member.h"
#include "core/spec/mesh.h"
#include "trainer/parallel/mesh_groups.h"
#include "trainer/trainer.h"

namespace nibble {

/// "one rank", "data 2", "tensor 2", "expert 2" or "tensor 2, expert 2".
std::string mesh_name(const Mesh& mesh);
/// Every way in which two ranks share the model, but one in which they share nothing.
std::vector<Mesh> meshes_of_two(const ModelConfig& config);

/// The groups of one rank of a mesh; of a mesh of one, nobody else's.
struct MeshSeat {
  MeshSeat(const Member& member, const Mesh& mesh, int rank, const std::string& name);
  std::unique_ptr<ProcessGroup> host, all;
  std::unique_ptr<MeshGroups> groups;
};

/// Writes the config.json of a shape, which a trainer with random weights needs.
void write_model_directory(const std::filesystem::path& directory, const std::string& model,
                           int64_t layers);
/// A supervised trainer of random weights on it; `group_size` 0: nothing is quantized.
TrainerConfig random_trainer(const std::filesystem::path& directory, int64_t group_size);

/// `count` random token ids.
std::vector<int32_t> random_ids(int64_t vocab, int64_t count, uint32_t seed);

}  // namespace nibble
