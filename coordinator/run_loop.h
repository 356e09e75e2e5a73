#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine_board.h"
#include "coordinator/held_out.h"
#include "coordinator/membership.h"
#include "coordinator/metrics_log.h"
#include "coordinator/run_config.h"
#include "coordinator/run_summary.h"
#include "coordinator/step_pace.h"
#include "coordinator/trainer_ranks.h"
#include "coordinator/weight_publisher.h"
#include "coordinator/worker_client.h"
#include "core/data/prompts.h"
#include "core/store/run_store.h"

namespace nibble {

/// What is sampled in a training step; the coordinator's view of the `rollout` section.
struct SamplingPlan {
  int64_t prompts_per_step = 8;
  int64_t samples_per_prompt = 8;
  int64_t max_new_tokens = 64;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 0;
  std::chrono::milliseconds timeout{600'000};
  int engine_ranks = 1;  ///< rollout workers of one engine
};

/// The loop of a job: publish, generate, score, train, publish; evaluate and checkpoint every so
/// often. Deterministic in the configuration and seed; resumes at a finished step. One thread.
class RunLoop {
 public:
  /// Borrows membership and board, which must outlive it; the board is told how engines stand.
  /// `checkpoint`: where to resume; empty: fresh.
  RunLoop(CoordinatorConfig config, SamplingPlan sampling, Membership& membership,
          EngineBoard& board, std::filesystem::path checkpoint);
  ~RunLoop();

  /// Trains until config.run.steps, or until `interrupt` is set: then the step in progress, if one
  /// is, is finished and a checkpoint written. Throws the first error of any worker, naming it.
  RunSummary run(const std::atomic<bool>& interrupt);

 private:
  struct Rollout;
  void connect();
  void start_workers();
  PublisherOptions publisher_options();
  void run_step(int64_t step);
  void evaluate(int64_t step);
  Rollout sample_held_out(int64_t step, size_t set);
  Rollout generate(int64_t step);
  Rollout generate_on_all(const GenerateTask& base, const std::vector<PromptTask>& prompts);
  void record_samples(int64_t step, const Rollout& rollout, int64_t version);
  void add_rollout_figures(const Rollout& rollout, MetricsRow& row) const;
  void report(const MetricsRow& row, double step_ms);

  const CoordinatorConfig config_;
  const SamplingPlan sampling_;
  Membership& membership_;
  EngineBoard& board_;
  const std::filesystem::path resume_from_;
  std::vector<PromptRecord> train_prompts_;
  std::vector<HeldOutSet> held_out_;
  std::vector<std::vector<PromptRecord>> held_out_prompts_;  // of each
  PromptStream stream_;
  RunStore store_;
  std::optional<TrainerRanks> trainers_;                 // from connect() on
  std::vector<std::unique_ptr<RolloutClient>> engines_;  // all ranks of the first, of the next...
  std::unique_ptr<WeightPublisher> publisher_;
  std::unique_ptr<MetricsLog> metrics_;
  PublishStats published_;
  RunSummary summary_;
  StepPace pace_;
};

}  // namespace nibble
