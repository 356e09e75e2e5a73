#include "core/spec/mesh.h"

#include "core/base/fail.h"

namespace nibble {

Sharing sharing_of(const ParameterSpec& parameter, const Mesh& mesh) {
  switch (parameter.role) {
    case ParameterRole::kAttention:
    case ParameterRole::kMlp:
    case ParameterRole::kLoraB:  // rows as its matrix's
      return mesh.tensor > 1 ? Sharing::kTensor : Sharing::kAll;
    case ParameterRole::kExpert:
      return mesh.expert > 1 ? Sharing::kExpert : Sharing::kAll;
    default:
      return Sharing::kAll;
  }
}

Owners owners_of(Sharing sharing, const Mesh& mesh, int rank) {
  switch (sharing) {
    case Sharing::kTensor:
      return {rank / mesh.tensor, mesh.world / mesh.tensor};
    case Sharing::kExpert:
      return {rank / mesh.expert, mesh.world / mesh.expert};
    case Sharing::kAll:
      break;
  }
  return {rank, mesh.world};
}

RowShard held_experts(int64_t num_experts, const Mesh& mesh, int rank) {
  return row_shard(num_experts, mesh.expert_rank(rank), mesh.expert);
}

RowShard used_rows(const ParameterTable& table, int64_t parameter, const Mesh& mesh, int rank) {
  const ParameterSpec& spec = table.at(parameter);
  switch (sharing_of(spec, mesh)) {
    case Sharing::kTensor:
      return row_shard(spec.rows, mesh.tensor_rank(rank), mesh.tensor);
    case Sharing::kExpert: {
      const RowShard held = held_experts(table.num_experts, mesh, rank);
      const bool is_held = spec.expert >= held.begin && spec.expert < held.end;
      return {0, is_held ? spec.rows : 0};
    }
    case Sharing::kAll:
      break;
  }
  return {0, spec.rows};
}

RowShard owned_rows(const ParameterTable& table, int64_t parameter, const Mesh& mesh, int rank) {
  const RowShard used = used_rows(table, parameter, mesh, rank);
  const Owners owners = owners_of(sharing_of(table.at(parameter), mesh), mesh, rank);
  const RowShard part = row_shard(used.rows(), owners.place, owners.count);
  return {used.begin + part.begin, used.begin + part.end};
}

ParameterTable rank_table(ParameterTable table, const Mesh& mesh, int rank) {
  const ParameterTable whole = table;
  for (int64_t p = 0; p < whole.size(); ++p) {
    table.parameters[static_cast<size_t>(p)].rows = used_rows(whole, p, mesh, rank).rows();
  }
  return table;
}

ModelConfig rank_config(ModelConfig config, const Mesh& mesh) {
  config.num_heads /= mesh.tensor;
  config.num_kv_heads /= mesh.tensor;
  config.intermediate /= mesh.tensor;
  return config;
}

std::optional<std::string> mesh_problem(const ModelConfig& config, const Mesh& mesh) {
  const auto must_divide = [](const char* key, int size, const char* what,
                              int64_t count) -> std::optional<std::string> {
    if (count % size == 0) return std::nullopt;
    return fmt::format("{} = {} does not divide {} = {}", key, size, what, count);
  };
  std::optional<std::string> problem;
  const auto check = [&](const char* key, int size, const char* what, int64_t count) {
    if (!problem) problem = must_divide(key, size, what, count);
  };
  const char* tensor = "parallel.tensor";
  check(tensor, mesh.tensor, "the number of trainers", mesh.world);
  if (mesh.context > 1) {
    check("parallel.context times parallel.tensor", mesh.context * mesh.tensor,
          "the number of trainers", mesh.world);
  }
  check("parallel.expert", mesh.expert, "the number of trainers", mesh.world);
  check(tensor, mesh.tensor, "num_attention_heads", config.num_heads);
  check(tensor, mesh.tensor, "num_key_value_heads", config.num_kv_heads);
  check(tensor, mesh.tensor, "hidden_size", config.hidden);
  if (config.num_moe_layers() < config.num_layers) {
    check(tensor, mesh.tensor, "intermediate_size", config.intermediate);
  }
  if (config.num_moe_layers() > 0) {
    check("parallel.expert", mesh.expert, "the number of experts", config.moe.num_experts);
  } else if (!problem && mesh.expert > 1) {
    problem = fmt::format("parallel.expert = {}, but the model has no experts", mesh.expert);
  }
  return problem;
}

}  // namespace nibble
