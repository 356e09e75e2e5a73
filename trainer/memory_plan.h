#pragma once

#include <cstdint>

#include "core/spec/model_config.h"
#include "core/spec/parameters.h"
#include "trainer/gather_plan.h"
#include "trainer/trainer.h"

namespace nibble {

/// What one trainer rank takes of memory, by the sizes of the parameters alone: before anything is
/// allocated. A critic's share is in each.
struct TrainerMemory {
  int64_t master_bytes = 0;  ///< float32, of what is trained; held scales too
  int64_t moment_bytes = 0;
  int64_t gradient_bytes = 0;    ///< float32 of what the rank owns
  int64_t packed_bytes = 0;      ///< two of each plan, in use and being made; one of a critic; what
                                 ///< is frozen, and a draft model, once
  int64_t reference_bytes = 0;   ///< BF16; the teacher's too
  int64_t ring_bytes = 0;        ///< layers gathered or uploaded, and their gradients
  int64_t activation_bytes = 0;  ///< of one full micro-batch: peak_activation_bytes()
  int64_t workspace_bytes = 0;   ///< of a GPU's matrix products, on one stream
  /// More of them, to be on the safe side: where a router sends twice an even part of the rows to
  /// one of several expert ranks (one that sends still more takes more); on a GPU for workspaces of
  /// libraries and fragments of the allocator.
  int64_t margin_bytes = 0;
  DeviceKind device = DeviceKind::kCpu;
  DeviceKind state_home = DeviceKind::kCpu;  ///< of masters, moments and held scales
  DeviceKind reference_home = DeviceKind::kCpu;

  /// Of host memory, or files where masters are in files: what a checkpoint copies, and holds until
  /// it is written (CheckpointSnapshot). In no total.
  int64_t checkpoint_bytes() const { return master_bytes + moment_bytes; }
  /// Of memory of one kind; rows are even.
  int64_t bytes_in(DeviceKind kind) const;
  /// Of the device's own, to be on the safe side.
  int64_t total() const { return bytes_in(device) + margin_bytes; }
};

/// `config.model` needs its config.json only. Throws Error as parse_model_config().
TrainerMemory plan_trainer_memory(const TrainerConfig& config, const Mesh& mesh, int rank,
                                  DeviceKind device);

/// Bytes that the rank gathers for one version of the weights.
struct TrainerGathers {
  GatherPlan training;
  GatherPlan reference;  ///< of the reference's own ring; zeros without one
  GatherPlan teacher;
};
/// Of the model that is trained, over all updates of a step, with the pass for old
/// log-probabilities where one is needed.
///   micro_batches  of one update
GatherBytes plan_training_gathers(const TrainerConfig& config, const Mesh& mesh, int rank,
                                  int64_t micro_batches);
TrainerGathers plan_trainer_gathers(const TrainerConfig& config, const Mesh& mesh, int rank);
/// plan_gathers_with_old_pass() of the job's critic; zeros without one.
GatherBytes plan_critic_gathers(const TrainerConfig& config, const Mesh& mesh, int rank,
                                int64_t micro_batches);

}  // namespace nibble
