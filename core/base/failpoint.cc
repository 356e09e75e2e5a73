#include "core/base/failpoint.h"

#include <csignal>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

struct Failpoint {
  int64_t at = 1;
  std::string action;
  int64_t sleep_ms = 0;
};

class Failpoints {
 public:
  explicit Failpoints(const std::string& text) {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(';', begin), text.size());
      add(text.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  bool empty() const { return points_.empty(); }
  void pass(const std::string& name) {
    const auto range = points_.equal_range(name);
    if (range.first == range.second) return;
    int64_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      count = ++passed_[name];
    }
    for (auto it = range.first; it != range.second; ++it) {
      if (it->second.at == count) act(name, it->second);
    }
  }

 private:
  void add(const std::string& entry) {
    const size_t at = entry.find('@'), equals = entry.find('=');
    Failpoint point;
    if (at == std::string::npos || equals == std::string::npos || at > equals) refuse(entry);
    point.at = std::atoll(entry.substr(at + 1, equals - at - 1).c_str());
    point.action = entry.substr(equals + 1);
    if (point.action.starts_with("sleep:")) {
      point.sleep_ms = std::atoll(point.action.c_str() + 6);
      point.action = "sleep";
    }
    const bool is_known = point.action == "kill" || point.action == "stop" ||
                          point.action == "error" || point.action == "sleep";
    if (!is_known || point.at < 1) refuse(entry);
    points_.emplace(entry.substr(0, at), point);
  }
  [[noreturn]] static void refuse(const std::string& entry) {
    fail(ErrorCode::kInvalidArgument,
         "NIBBLE_FAILPOINTS: '{}' is not NAME@N=kill, stop, error or sleep:MILLISECONDS", entry);
  }
  static void act(const std::string& name, const Failpoint& point) {
    get_logger("failpoint")->warn("{}: {}", name, point.action);
    if (point.action == "kill") raise(SIGKILL);
    if (point.action == "stop") raise(SIGSTOP);
    if (point.action == "sleep") {
      std::this_thread::sleep_for(std::chrono::milliseconds(point.sleep_ms));
    }
    if (point.action == "error") fail(ErrorCode::kUnavailable, "failpoint {}", name);
  }

  std::multimap<std::string, Failpoint> points_;  // constant after construction
  std::mutex mutex_;
  std::map<std::string, int64_t> passed_;  // guarded by mutex_
};

Failpoints& failpoints() {
  static Failpoints all(read_env().failpoints.value_or(""));
  return all;
}

}  // namespace

void failpoint(const std::string& name) {
  Failpoints& all = failpoints();
  if (!all.empty()) all.pass(name);
}

void check_failpoints() { (void)failpoints(); }

}  // namespace nibble
