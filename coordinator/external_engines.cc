#include "coordinator/external_engines.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxTextBytes = 500;

bool is_name_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

// What a stranger wrote goes into logs and terminals.
std::string printable(std::string text) {
  if (text.size() > kMaxTextBytes) text.resize(kMaxTextBytes);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

void check(const ExternalEngine& engine) {
  const std::string& name = engine.name;
  if (name.empty() || name.size() > kMaxNameBytes ||
      !std::all_of(name.begin(), name.end(), is_name_letter)) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' is no name of an external engine: 1 to {} letters, digits, '.', '_' or '-'",
         printable(name), kMaxNameBytes);
  }
  if (engine.served_version < 0) {
    fail(ErrorCode::kInvalidArgument, "external engine '{}' says that it serves version {}", name,
         engine.served_version);
  }
}

}  // namespace

void ExternalEngines::follow(ExternalEngine engine) {
  check(engine);
  engine.host = printable(std::move(engine.host));
  engine.last_failure = printable(std::move(engine.last_failure));
  const std::lock_guard lock(mutex_);
  forget_silent();
  const auto found = entries_.find(engine.name);
  const auto log = get_logger("coordinator");
  if (found == entries_.end()) {
    if (std::ssize(entries_) >= limit_) {
      fail(ErrorCode::kFailedPrecondition,
           "external engine '{}' may not follow this job: {} follow it, and "
           "cluster.external_engines is {}",
           engine.name, entries_.size(), limit_);
    }
    log->info("external engine '{}' (pid {} on {}) follows", engine.name, engine.pid, engine.host);
  } else {
    const ExternalEngine& known = found->second.engine;
    if (known.pid != engine.pid || known.host != engine.host) {
      fail(ErrorCode::kFailedPrecondition,
           "pid {} on {} follows this job as '{}': take another name, or wait until its lease of "
           "{} ms has run out",
           known.pid, known.host, engine.name, lease_.count());
    }
    if (!engine.last_failure.empty() && engine.last_failure != known.last_failure) {
      log->warn("external engine '{}': {}", engine.name, engine.last_failure);
    }
  }
  const int64_t before = found == entries_.end() ? 0 : found->second.engine.served_version;
  if (engine.served_version != before) {
    log->info("external engine '{}' serves version {}", engine.name, engine.served_version);
  }
  const std::string name = engine.name;
  entries_[name] = {std::move(engine), SteadyClock::now()};
}

std::vector<ExternalEngineView> ExternalEngines::views() {
  const std::lock_guard lock(mutex_);
  forget_silent();
  const auto now = SteadyClock::now();
  std::vector<ExternalEngineView> views;
  for (const auto& [name, entry] : entries_) {
    views.push_back(
        {entry.engine, std::chrono::duration_cast<std::chrono::milliseconds>(now - entry.renewed)});
  }
  return views;
}

void ExternalEngines::forget_silent() {
  const auto now = SteadyClock::now();
  std::erase_if(entries_, [&](const auto& item) {
    const bool is_silent = now - item.second.renewed > lease_;
    if (is_silent) {
      get_logger("coordinator")
          ->warn("external engine '{}' has been silent for more than {} ms: forgotten", item.first,
                 lease_.count());
    }
    return is_silent;
  });
}

}  // namespace nibble
