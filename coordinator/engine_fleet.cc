#include "coordinator/engine_fleet.h"

#include <algorithm>

namespace nibble {
namespace {

// Numbers that a test holds for.
template <typename Test>
std::vector<int> numbers_where(int count, Test test) {
  std::vector<int> numbers;
  for (int e = 0; e < count; ++e) {
    if (test(e)) numbers.push_back(e);
  }
  return numbers;
}

template <typename Entries, typename Test>
bool all_of(const Entries& entries, Test test) {
  return std::all_of(entries.begin(), entries.end(), test);
}

}  // namespace

EngineFleet::EngineFleet(int num_engines, int64_t epoch, bool in_place, int ranks)
    : in_place_(in_place),
      ranks_(ranks),
      entries_(static_cast<size_t>(num_engines)),
      epoch_(epoch) {}

std::span<const EngineFleet::Entry> EngineFleet::ranks_of(int engine) const {
  return std::span(entries_).subspan(static_cast<size_t>(engine - engine % ranks_),
                                     static_cast<size_t>(ranks_));
}
std::span<EngineFleet::Entry> EngineFleet::ranks_of(int engine) {
  return std::span(entries_).subspan(static_cast<size_t>(engine - engine % ranks_),
                                     static_cast<size_t>(ranks_));
}

std::vector<int> EngineFleet::members() const {
  auto members = numbers_where(size(), [&](int e) {
    return all_of(ranks_of(e), [](const Entry& r) { return !r.is_fenced && !r.is_pulling; });
  });
  if (!members.empty()) return members;
  return numbers_where(size(), [&](int e) {
    return all_of(ranks_of(e), [](const Entry& r) { return !r.is_pulling; });
  });
}

std::vector<int> EngineFleet::serving() const {
  return numbers_where(size(), [&](int e) {
    return e % ranks_ == 0 && version_ > 0 &&
           all_of(ranks_of(e), [&](const Entry& r) { return r.version == version_; });
  });
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
  // What one rank missed, its engine missed.
  for (const int e : members) {
    const std::span<Entry> ranks = ranks_of(e);
    if (all_of(ranks, [](const Entry& r) { return !r.is_fenced; })) continue;
    for (Entry& rank : ranks) {
      rank.is_fenced = true;
      rank.is_on_trial = false;
    }
  }
  if (!is_clean) ++epoch_;
}

std::vector<int> EngineFleet::behind() const {
  return numbers_where(size(), [&](int e) {
    const Entry& entry = at(e);
    // A rank that has caught up waits for the others of its engine.
    return entry.is_fenced && !entry.is_pulling && (ranks_ == 1 || !serves(e));
  });
}

std::optional<int> EngineFleet::next_peer(int engine, const std::vector<int>& busy) {
  for (size_t i = 1; i <= entries_.size(); ++i) {
    const size_t place = (last_peer_ + i) % entries_.size();
    const auto e = static_cast<int>(place);
    if (e % ranks_ != engine % ranks_ || at(e).is_fenced || !serves(e)) continue;
    if (std::find(busy.begin(), busy.end(), e) != busy.end()) continue;
    last_peer_ = place;
    return e;
  }
  return std::nullopt;
}

void EngineFleet::pull_ended(int engine, int64_t version, bool has_committed) {
  Entry& entry = entries_[static_cast<size_t>(engine)];
  entry.is_pulling = false;
  ++epoch_;
  if (!has_committed) return;
  entry.version = version;
  const std::span<Entry> ranks = ranks_of(engine);
  if (!all_of(ranks, [&](const Entry& r) { return !r.is_pulling && r.version == version; })) return;
  for (Entry& rank : ranks) rank.is_fenced = false;
}

void EngineFleet::readmit(int engine) {
  for (Entry& rank : ranks_of(engine)) {
    rank.is_fenced = false;
    rank.is_on_trial = true;
  }
  ++epoch_;
}

}  // namespace nibble
