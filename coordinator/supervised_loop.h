#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "coordinator/checkpoint_writer.h"
#include "coordinator/membership.h"
#include "coordinator/metrics_log.h"
#include "coordinator/run_config.h"
#include "coordinator/run_summary.h"
#include "coordinator/step_pace.h"
#include "coordinator/trainer_ranks.h"
#include "core/data/prompts.h"
#include "core/store/run_store.h"

namespace nibble {

/// What a supervised step takes; the coordinator's view of other sections.
struct SupervisedPlan {
  int64_t records_per_step = 64;
  std::chrono::milliseconds timeout{600'000};  ///< of a step, and of an evaluation
};

/// The loop of a supervised job (algorithm.loss: sft): choose records, train; evaluate and
/// checkpoint every so often. Trainer ranks only, nothing is published. Deterministic in the
/// configuration and seed; resumes at a finished step. One thread.
class SupervisedLoop {
 public:
  /// Borrows the membership, which must outlive it. `checkpoints`: where to resume, at the first
  /// that is whole; none: fresh.
  SupervisedLoop(CoordinatorConfig config, SupervisedPlan plan, Membership& membership,
                 std::vector<std::filesystem::path> checkpoints);

  /// Trains until config.run.steps, or until `interrupt` is set: then the step in progress, if one
  /// is, is finished and a checkpoint written. Throws the first error of any worker, naming it.
  RunSummary run(const std::atomic<bool>& interrupt);

 private:
  void start();
  void run_step(int64_t step);
  void evaluate(int64_t step);
  void report(const MetricsRow& row);

  const CoordinatorConfig config_;
  const SupervisedPlan plan_;
  Membership& membership_;
  const std::vector<std::filesystem::path> resume_from_;
  const bool is_new_;  // nothing of it was there, though it may go on from another run's checkpoint
  RunStore store_;
  std::optional<TrainerRanks> trainers_;  // these four from start() on
  std::optional<CheckpointWriter> checkpoints_;
  std::optional<PromptStream> stream_;
  std::unique_ptr<MetricsLog> metrics_;
  RunSummary summary_;
  int64_t next_record_ = 0;  // place in the stream
  StepPace pace_;
};

}  // namespace nibble
