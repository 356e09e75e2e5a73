#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/worker_client.h"
#include "core/store/run_store.h"

namespace nibble {

/// What one publication cost.
struct PublishStats {
  int64_t version = 0;
  int64_t bytes = 0;      ///< on the wire, all engines
  double sync_ms = 0.0;   ///< whole transaction
  double wire_ms = 0.0;   ///< slowest engine, first byte awaited to last byte hashed
  double pause_ms = 0.0;  ///< longest pause of an engine
};

/// Publishes weight versions: plan, reserve, move, verify and prepare on every engine, then the
/// decision is written durably, then every engine swaps. A failure before the decision leaves all
/// engines on the version before. One thread.
class WeightPublisher {
 public:
  /// Borrows all; they must outlive it. `timeout` is for one publication.
  WeightPublisher(std::string job, int64_t epoch, std::vector<TrainerClient*> trainers,
                  std::vector<RolloutClient*> engines, RunStore& store,
                  std::chrono::milliseconds timeout);

  /// Publishes the trainers' current weights as the next version, trying again `retries` times.
  /// Throws what the last try threw.
  PublishStats publish(int64_t step, int64_t retries);

 private:
  struct Attempt;
  void meet();
  void plan_all(std::vector<PublicationId>& publications, PublishStats& stats);
  void move_and_prepare(size_t engine, const PublicationId& publication, Attempt& attempt);
  PublishStats try_publish(int64_t step);
  std::vector<std::string> membership(size_t engine) const;

  const std::string job_;
  const int64_t epoch_;
  const std::vector<TrainerClient*> trainers_;
  const std::vector<RolloutClient*> engines_;
  RunStore& store_;
  const std::chrono::milliseconds timeout_;
  int64_t version_ = 0;
  int64_t meetings_ = 0;
  bool met_ = false;
};

}  // namespace nibble
