#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/worker_client.h"

namespace nibble {

/// All trainer ranks of a job, called at once. A call returns when every rank has answered, and
/// throws the first error of a rank. One thread.
class TrainerRanks {
 public:
  /// `start_timeout` is for loading and for checkpoints.
  TrainerRanks(const std::vector<Member>& members, std::chrono::milliseconds start_timeout);

  /// The ranks meet and load. `checkpoint`: where to resume; empty: a fresh start. Throws
  /// Error{kFailedPrecondition} naming two ranks that begin at different places.
  TrainerStart start(const std::string& checkpoint);
  /// Calls `body` for every rank; returns rank 0's figures.
  std::map<std::string, double> figures(
      const std::function<std::map<std::string, double>(TrainerClient&)>& body);
  RecordsLoss evaluate_records(int64_t step, std::chrono::milliseconds timeout);
  void save(const std::string& directory, int64_t step, int64_t version,
            const std::string& rollout_state);
  std::vector<TrainerClient*> clients() const;

 private:
  const std::chrono::milliseconds start_timeout_;
  std::vector<std::unique_ptr<TrainerClient>> trainers_;
};

}  // namespace nibble
