#pragma once

#include <string>
#include <string_view>

#include "core/spec/mesh.h"

namespace nibble {

/// Ranks of one side of a publication.
struct BenchLayout {
  int replicas = 1;  ///< engines that get a version each
  Mesh mesh;         ///< of the trainer, or of one engine
  int num_ranks() const { return replicas * mesh.world; }
};

constexpr int kMaxBenchRanks = 64;  // of one side: each is a process

/// Reads "[Rx][dpD][tpT][epE]", numbers from 1: R replicas of D x T ranks, T of them on the same
/// tokens and E with a layer's experts. Without dp there are as many ranks as the larger of T and
/// E. `flag` names the text in errors; replicas only where `has_replicas`. Throws
/// Error{kInvalidArgument} naming the part at fault.
BenchLayout parse_bench_layout(std::string_view flag, const std::string& text, bool has_replicas);

}  // namespace nibble
