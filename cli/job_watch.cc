#include "cli/job_watch.h"

#include "core/base/error.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kInterval{50};

}  // namespace

JobWatch::JobWatch(Membership& membership, const std::vector<std::string>& command, int count)
    : membership_(membership), children_(command, count) {
  watcher_.emplace([this](const std::stop_token& stop) { watch(stop); });
}

JobWatch::~JobWatch() { watcher_.reset(); }

std::optional<std::string> JobWatch::find_loss() {
  const auto death = children_.find_death();
  // Workers end once they are told that the job is over; none is told before it is marked so.
  if (membership_.stopped()) return std::nullopt;
  if (death) return fmt::format("{} {}", membership_.describe_process(death->pid), death->how);
  try {
    membership_.check_leases();
  } catch (const Error& silence) {
    return silence.what();
  }
  return std::nullopt;
}

void JobWatch::watch(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!noticed_.wait_for(lock, stop, kInterval, [&] { return stop.stop_requested(); }) &&
         !stop.stop_requested()) {
    loss_ = find_loss();
    if (!loss_) continue;
    membership_.stop();
    children_.kill_all();
    noticed_.notify_all();
    return;
  }
}

std::optional<std::string> JobWatch::loss(std::chrono::milliseconds wait) {
  std::unique_lock lock(mutex_);
  noticed_.wait_for(lock, wait, [this] { return loss_.has_value(); });
  return loss_;
}

void JobWatch::finish(std::chrono::milliseconds wait) {
  watcher_.reset();
  children_.wait_all(Deadline::after(wait));
}

}  // namespace nibble
