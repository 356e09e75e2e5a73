#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/worker_client.h"

namespace nibble {

/// All trainer ranks of a job, called at once. A call returns when every rank has answered, and
/// throws the first error of a rank. One thread; another one may call write_snapshot() and
/// finish_snapshot().
class TrainerRanks {
 public:
  /// `start_timeout` is for loading and for checkpoints.
  TrainerRanks(const std::vector<Member>& members, std::chrono::milliseconds start_timeout);

  /// The ranks meet and load the model; returns the number of records of a supervised job. Throws
  /// Error{kFailedPrecondition} naming two ranks that have different numbers.
  int64_t start();
  /// All go on from a checkpoint. Throws Error{kFailedPrecondition} naming two ranks that then are
  /// at different steps.
  CheckpointStart load(const std::string& checkpoint);
  /// The first of `checkpoints` that is whole, all ranks; those before it are said to be damaged.
  /// None: a fresh start. Throws what the last one threw if none is.
  CheckpointStart load_first_whole(const std::vector<std::filesystem::path>& checkpoints);
  /// One step; rank 0's figures, and what the guards of all ranks have to say.
  TrainResult train(int64_t step, const std::vector<GroupSource>& groups,
                    std::chrono::milliseconds timeout);
  /// Calls `body` for every rank; returns rank 0's figures.
  std::map<std::string, double> figures(
      const std::function<std::map<std::string, double>(TrainerClient&)>& body);
  RecordsLoss evaluate_records(int64_t step, std::chrono::milliseconds timeout);
  /// Copies the state of all for a checkpoint, for the next two.
  void snapshot(const std::filesystem::path& directory, int64_t step, int64_t version,
                const std::string& rollout_state);
  void write_snapshot(int64_t step);
  /// The checkpoint appears, or (not `publish`) nothing is left of it.
  void finish_snapshot(int64_t step, bool publish);
  /// Ends calls under way, and every later one, with Error{kCancelled}. Safe from any thread.
  void give_up();
  std::vector<TrainerClient*> clients() const;

 private:
  const std::chrono::milliseconds start_timeout_;
  std::vector<std::unique_ptr<TrainerClient>> trainers_;
};

}  // namespace nibble
