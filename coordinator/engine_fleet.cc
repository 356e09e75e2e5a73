#include "coordinator/engine_fleet.h"

#include <algorithm>

namespace nibble {
namespace {

// Numbers of the entries that a test holds for.
template <typename Entries, typename Test>
std::vector<int> numbers_of(const Entries& entries, Test test) {
  std::vector<int> numbers;
  for (size_t e = 0; e < entries.size(); ++e) {
    if (test(entries[e])) numbers.push_back(static_cast<int>(e));
  }
  return numbers;
}

}  // namespace

EngineFleet::EngineFleet(int num_engines, int64_t epoch, bool in_place)
    : in_place_(in_place), entries_(static_cast<size_t>(num_engines)), epoch_(epoch) {}

std::vector<int> EngineFleet::members() const {
  auto members = numbers_of(entries_, [](const Entry& e) { return !e.is_fenced && !e.is_pulling; });
  if (!members.empty()) return members;
  return numbers_of(entries_, [](const Entry& e) { return !e.is_pulling; });
}

std::vector<int> EngineFleet::serving() const {
  return numbers_of(entries_,
                    [&](const Entry& e) { return e.version == version_ && version_ > 0; });
}

void EngineFleet::publication_ended(int64_t version, const std::vector<int>& members,
                                    const Publication& ended) {
  bool is_clean = ended.is_committed();
  if (ended.is_committed()) version_ = version;
  for (size_t i = 0; i < members.size(); ++i) {
    Entry& entry = entries_[static_cast<size_t>(members[i])];
    const bool has_committed = ended.state(static_cast<int>(i)) == EngineState::kCommitted;
    if (has_committed) entry.version = version;
    if (in_place_ && !has_committed) entry.version = 0;
    if (!ended.is_committed()) {
      const std::vector<int>& ready = ended.members();
      const bool was_ready =
          std::find(ready.begin(), ready.end(), static_cast<int>(i)) != ready.end();
      if (entry.is_on_trial && !was_ready) {
        entry.is_fenced = true;
        entry.is_on_trial = false;
      }
      continue;
    }
    entry.is_on_trial = false;
    is_clean = is_clean && has_committed && !entry.is_fenced;
    entry.is_fenced = !has_committed;
  }
  if (!is_clean) ++epoch_;
}

std::vector<int> EngineFleet::behind() const {
  return numbers_of(entries_, [](const Entry& e) { return e.is_fenced && !e.is_pulling; });
}

std::optional<int> EngineFleet::next_peer(const std::vector<int>& busy) {
  for (size_t i = 1; i <= entries_.size(); ++i) {
    const size_t e = (last_peer_ + i) % entries_.size();
    if (entries_[e].is_fenced || !serves(static_cast<int>(e))) continue;
    if (std::find(busy.begin(), busy.end(), static_cast<int>(e)) != busy.end()) continue;
    last_peer_ = e;
    return static_cast<int>(e);
  }
  return std::nullopt;
}

void EngineFleet::pull_ended(int engine, int64_t version, bool has_committed) {
  Entry& entry = entries_[static_cast<size_t>(engine)];
  entry.is_pulling = false;
  ++epoch_;
  if (!has_committed) return;
  entry.version = version;
  entry.is_fenced = false;
}

void EngineFleet::readmit(int engine) {
  Entry& entry = entries_[static_cast<size_t>(engine)];
  entry.is_fenced = false;
  entry.is_on_trial = true;
  ++epoch_;
}

}  // namespace nibble
