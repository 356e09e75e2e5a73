#include "cli/stop_signals.h"

#include <csignal>
#include <ctime>
#include <utility>

namespace nibble {
namespace {

sigset_t stop_set() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

void set_mask(int how) {
  const sigset_t set = stop_set();
  (void)pthread_sigmask(how, &set, nullptr);
}

}  // namespace

StopSignals::StopSignals() { set_mask(SIG_BLOCK); }

StopSignals::~StopSignals() {
  if (is_holding_) set_mask(SIG_UNBLOCK);
}

bool StopSignals::wait_for(std::chrono::milliseconds wait) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(wait);
  timespec timeout{};
  timeout.tv_sec = seconds.count();
  timeout.tv_nsec = std::chrono::nanoseconds(wait - seconds).count();
  const sigset_t set = stop_set();
  if (sigtimedwait(&set, nullptr, &timeout) < 0) return false;
  if (std::exchange(is_holding_, false)) set_mask(SIG_UNBLOCK);
  return true;
}

}  // namespace nibble
