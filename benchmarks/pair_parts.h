#pragma once

#include <filesystem>
#include <string>

#include "benchmarks/pair_member.h"

namespace nibble {

struct PairOptions {
  Place place = Place::kOwnGpu;
  int rounds = 5;             ///< repeats of what is timed
  int64_t dense_layers = 10;  ///< of the models that `train` has
  int64_t moe_layers = 2;
  std::filesystem::path directory;  ///< for config.json files
  bool hides_others = false;        ///< Seat's
  /// Of a part that runs two ranks: number, GPU and process are the same, rank 0 hosts the store.
  Seat seat(int port, int rank) const { return {place, rank, rank, port, rank == 0, hides_others}; }
  /// Real shapes need a GPU each.
  bool is_dry_run() const { return place != Place::kOwnGpu; }
};

/// The parts of gpu_pair_bench. Each forks its ranks, prints its figures and returns whether all
/// of them ended well.

/// Publications from one GPU to the other: rates by bucket size and channels, hashes, the swap, and
/// the same while the receiver generates.
bool run_sync(const PairOptions& options);
/// Sender and receiver killed or stopped in the middle of a publication.
bool run_faults(const PairOptions& options);
/// Supervised steps on one rank and on two that share the model in each way, QAT and BF16.
bool run_train(const PairOptions& options);
/// Log-probabilities in exact numerics of one rank and of two, to the bit.
bool run_exact(const PairOptions& options);
/// Prints what the parts would move and hold, from the shapes alone. No GPU is needed.
void describe_plans(const PairOptions& options);

}  // namespace nibble
