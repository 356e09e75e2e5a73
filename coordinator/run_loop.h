#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/checkpoint_writer.h"
#include "coordinator/engine_board.h"
#include "coordinator/held_out.h"
#include "coordinator/membership.h"
#include "coordinator/metrics_log.h"
#include "coordinator/rollout.h"
#include "coordinator/rollout_feed.h"
#include "coordinator/rollout_pool.h"
#include "coordinator/run_config.h"
#include "coordinator/run_summary.h"
#include "coordinator/sampling_plan.h"
#include "coordinator/step_pace.h"
#include "coordinator/trainer_ranks.h"
#include "coordinator/weight_publisher.h"
#include "coordinator/worker_client.h"
#include "core/data/prompts.h"
#include "core/store/run_store.h"

namespace nibble {

/// The loop of a job: publish, take samples, train, publish; evaluate and checkpoint every so
/// often. Deterministic in the configuration and seed where RolloutFeed is; resumes at a finished
/// step. One thread.
class RunLoop {
 public:
  /// Borrows membership and board, which must outlive it; the board is told how engines stand.
  /// `checkpoints`: where to resume, at the first that is whole; none: fresh.
  RunLoop(CoordinatorConfig config, SamplingPlan sampling, Membership& membership,
          EngineBoard& board, std::vector<std::filesystem::path> checkpoints);
  ~RunLoop();

  /// Trains until config.run.steps, or until `interrupt` is set: then the step in progress, if one
  /// is, is finished and a checkpoint written. Throws the first error of any worker, naming it.
  RunSummary run(const std::atomic<bool>& interrupt);

 private:
  void connect();
  void start_workers();
  PublisherOptions publisher_options();
  // False: what the step did was rolled back.
  bool run_step(int64_t step);
  void evaluate(int64_t step);
  Rollout sample_held_out(int64_t step, size_t set);
  PromptTask training_prompt(int64_t place);
  std::optional<GuardReport> train_on(const Rollout& rollout, int64_t step, MetricsRow& row);
  void roll_back(int64_t step, const GuardReport& guard);
  void begin_at(int64_t step, bool is_fresh);
  void publish(int64_t step);
  void save(int64_t step);
  void record_samples(int64_t step, const Rollout& rollout);
  void report(const MetricsRow& row, double step_ms);

  const CoordinatorConfig config_;
  const SamplingPlan sampling_;
  Membership& membership_;
  EngineBoard& board_;
  const std::vector<std::filesystem::path> resume_from_;
  const bool is_new_;  // nothing of it was there, though it may go on from another run's checkpoint
  std::vector<PromptRecord> train_prompts_;
  std::vector<HeldOutSet> held_out_;
  std::vector<std::vector<PromptRecord>> held_out_prompts_;  // of each
  PromptStream stream_;
  RunStore store_;
  std::optional<TrainerRanks> trainers_;                 // from connect() on
  std::unique_ptr<CheckpointWriter> checkpoints_;        // from start_workers() on
  std::vector<std::unique_ptr<RolloutClient>> engines_;  // all ranks of the first, of the next...
  std::unique_ptr<RolloutPool> pool_;                    // goes after what gives its calls up
  std::unique_ptr<RolloutFeed> feed_;
  std::unique_ptr<WeightPublisher> publisher_;
  std::unique_ptr<MetricsLog> metrics_;
  PublishStats published_;
  RunSummary summary_;
  int64_t rollbacks_ = 0;
  StepPace pace_;
};

}  // namespace nibble
