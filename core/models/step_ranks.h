#pragma once

#include <algorithm>
#include <cstdint>

#include "core/comm/process_group.h"
#include "core/spec/mesh.h"

namespace nibble {

/// The ranks that compute an engine's steps together, as trainer ranks share a model
/// (docs/decisions/0007-parallel-layouts.md): all see all tokens and have the whole residual
/// stream; each has its heads, and its rows of attention's and dense MLPs' matrices. Results are
/// gathered, never added up, so that they have the same bits for any number of ranks.
struct StepRanks {
  ProcessGroup* group = nullptr;  ///< of bytes that lie where steps are computed; null: one rank
  bool splits_experts = false;    ///< each holds some of a layer's experts; false: all of them

  int world() const { return group == nullptr ? 1 : group->world(); }
  int rank() const { return group == nullptr ? 0 : group->rank(); }
  Mesh mesh() const { return {world(), world(), splits_experts ? world() : 1}; }
};

/// The tokens of a step whose experts' results one rank adds up.
struct TokenShare {
  int64_t rows = 0;   ///< of every rank's part, the last ones' filled up
  int64_t begin = 0;  ///< of this rank's tokens
  int64_t count = 0;  ///< possibly none
};
inline TokenShare token_share(int64_t tokens, const StepRanks& ranks) {
  const int64_t rows = (tokens + ranks.world() - 1) / ranks.world();
  const int64_t begin = std::min(tokens, ranks.rank() * rows);
  return {rows, begin, std::min(rows, tokens - begin)};
}

/// The rows of the head that one rank multiplies with: as many on each, the last ones' overlap.
inline RowShard head_share(int64_t vocab, int rank, int world) {
  const int64_t rows = (vocab + world - 1) / world;
  const int64_t begin = std::min(rank * rows, vocab - rows);
  return {begin, begin + rows};
}

}  // namespace nibble
