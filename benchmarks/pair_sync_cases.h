#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/pair_parts.h"

namespace nibble {

/// Variables that NCCL reads when its first group of a process is made.
struct Channels {
  std::string name;
  std::vector<std::pair<std::string, std::string>> variables;
};

/// One model and setting of the wire.
struct SyncCase {
  std::string model;
  int64_t group = 128;
  Channels channels{"default", {}};
  std::vector<int64_t> bucket_mib;       // of the wire alone
  std::vector<int64_t> transaction_mib;  // of whole transactions; none: the wire alone
  int rounds = 3;
};

/// What part `sync` measures.
std::vector<SyncCase> sync_cases(const PairOptions& options);

}  // namespace nibble
