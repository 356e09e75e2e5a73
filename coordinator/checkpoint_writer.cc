#include "coordinator/checkpoint_writer.h"

#include <utility>

#include "coordinator/run_files.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/failpoint.h"
#include "core/base/log.h"
#include "core/checkpoint/checkpoint_list.h"

namespace nibble {
namespace {

// A run that has failed waits for its last checkpoint no longer than this.
constexpr std::chrono::milliseconds kLastWait{30'000};
// Every call to a rank has a deadline, so that this one is never met.
constexpr std::chrono::hours kEver{24};

}  // namespace

CheckpointWriter::CheckpointWriter(std::filesystem::path run_directory, int64_t keep,
                                   TrainerRanks& ranks)
    : run_directory_(std::move(run_directory)), keep_(keep), ranks_(ranks) {}

CheckpointWriter::~CheckpointWriter() {
  if (in_flight_ && !in_flight_->wait_until(Deadline::after(kLastWait))) ranks_.give_up();
}

void CheckpointWriter::save(int64_t step, int64_t version,
                            const std::function<std::string()>& save_rollouts) {
  const Stopwatch clock;
  finish();  // it removes groups that no checkpoint names, such as those written next
  const std::string rollout_state = save_rollouts ? save_rollouts() : "";
  const auto path = checkpoints_of(run_directory_) / checkpoint_name(step);
  ranks_.snapshot(path, step, version, rollout_state);
  const double blocked_ms = clock.elapsed_ms();
  in_flight_.emplace(
      [this, path, step, blocked_ms](const std::stop_token&) { write(path, step, blocked_ms); });
}

void CheckpointWriter::write(const std::filesystem::path& path, int64_t step, double blocked_ms) {
  const Stopwatch clock;
  try {
    ranks_.write_snapshot(step);
    failpoint("coordinator.publish_checkpoint");
    ranks_.finish_snapshot(step, true);
  } catch (const Error&) {
    try {
      ranks_.finish_snapshot(step, false);
    } catch (const Error& error) {  // the first one says more
      get_logger("run")->warn("'{}.partial' may be left behind: {}", path.string(), error.what());
    }
    throw;
  }
  get_logger("run")->info("checkpoint step={} path={} blocked_ms={:.0f} written_ms={:.0f}", step,
                          path.string(), blocked_ms, clock.elapsed_ms());
  // Older ones go only now that this one is durable.
  remove_old_checkpoints(run_directory_, step, keep_);
}

void CheckpointWriter::check() const {
  if (in_flight_) in_flight_->check();
}

void CheckpointWriter::finish() {
  if (!in_flight_) return;
  (void)in_flight_->wait_until(Deadline::after(kEver));
  in_flight_->check();
  in_flight_.reset();
}

}  // namespace nibble
