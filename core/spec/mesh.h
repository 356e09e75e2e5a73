#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/spec/model_config.h"
#include "core/spec/parameters.h"

namespace nibble {

/// Rows of a matrix: contiguous, possibly none.
struct RowShard {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t rows() const { return end - begin; }
};

/// Part `rank` of `world` as even ones of `rows` rows.
inline RowShard row_shard(int64_t rows, int rank, int world) {
  return {rows * rank / world, rows * (rank + 1) / world};
}

/// How ranks share a model (docs/decisions/0007-parallel-layouts.md). Rank r is tensor rank
/// r % tensor of the ranks that work on the same tokens, and expert rank r % expert of those that
/// hold a layer's experts together. `context` such tensor groups, one behind the other, share the
/// tokens of the same samples. tensor * context and expert divide `world`.
struct Mesh {
  int world = 1;
  int tensor = 1;
  int expert = 1;
  int context = 1;

  int num_data() const { return world / (tensor * context); }  ///< that differ in their samples
  int data_rank(int rank) const { return rank / (tensor * context); }
  int tensor_rank(int rank) const { return rank % tensor; }
  int context_rank(int rank) const { return rank / tensor % context; }
  int expert_rank(int rank) const { return rank % expert; }
  friend bool operator==(const Mesh&, const Mesh&) = default;
};

/// Who multiplies with which rows of a parameter.
enum class Sharing {
  kAll,     ///< every rank with all of them
  kTensor,  ///< each tensor rank with its part: attention, dense MLPs, B of adapters
  kExpert,  ///< the expert rank that has this expert, with all of them
};
Sharing sharing_of(const ParameterSpec& parameter, const Mesh& mesh);

/// The rank's place among, and number of, the ranks that multiply with the same rows.
struct Owners {
  int place = 0;
  int count = 1;
};
Owners owners_of(Sharing sharing, const Mesh& mesh, int rank);

/// Rows of a parameter of `table` that a rank multiplies with.
RowShard used_rows(const ParameterTable& table, int64_t parameter, const Mesh& mesh, int rank);
/// Rows that a rank keeps masters of, packs and publishes: its part of used_rows(), which it shares
/// with the ranks that use the same. Over all ranks every row comes exactly once.
RowShard owned_rows(const ParameterTable& table, int64_t parameter, const Mesh& mesh, int rank);

/// Experts [begin, end) of every MoE layer that a rank holds.
RowShard held_experts(int64_t num_experts, const Mesh& mesh, int rank);

/// What one tensor rank computes, as a model of its own: its heads, and its rows of dense MLPs'
/// inner matrices. Sizes of the stream, the vocabulary and the experts stay.
ModelConfig rank_config(ModelConfig config, const Mesh& mesh);

/// `table` with used_rows() alone: what a rank has in memory. Parameters of which it uses nothing
/// have no rows.
ParameterTable rank_table(ParameterTable table, const Mesh& mesh, int rank);

/// One sentence on why the ranks cannot share the model so, naming the size at fault; nothing if
/// they can.
std::optional<std::string> mesh_problem(const ModelConfig& config, const Mesh& mesh);

}  // namespace nibble
