#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "coordinator/publication.h"

namespace nibble {

/// Which engines take part in publications: those that keep up. An engine that a version went on
/// without is fenced: it generates nothing until it has pulled the committed version from an engine
/// that serves it, or the trainers have published to it again. Ranks of one engine (rollout.tensor)
/// have numbers of their own, in a row; they take part together or not at all, and the engine
/// serves what all of them do. One thread.
class EngineFleet {
 public:
  /// `epoch`: the first; above every epoch of the log. `in_place`: engines have one weight buffer,
  /// so that nothing is known of what is in it after an attempt that failed. `ranks`: of each
  /// engine; divides `num_engines`, which counts them all.
  EngineFleet(int num_engines, int64_t epoch, bool in_place = false, int ranks = 1);

  /// Of the next message; it rises whenever somebody was fenced, came back or an attempt failed, so
  /// that nobody takes a late message of before for one of now.
  int64_t epoch() const { return epoch_; }
  /// The newest committed version; 0: none.
  int64_t version() const { return version_; }
  /// Engines of the next publication: all that are not fenced; if none is left, all that are not
  /// pulling.
  std::vector<int> members() const;
  /// Known to serve version(); a rank: to have it.
  bool serves(int engine) const { return at(engine).version == version_ && version_ > 0; }
  bool is_fenced(int engine) const { return at(engine).is_fenced; }
  /// It takes part again, but has not caught up: it has no say in whether a version is committed.
  bool is_on_trial(int engine) const { return at(engine).is_on_trial; }
  /// Engines that serve version(), by their first ranks.
  std::vector<int> serving() const;
  int size() const { return static_cast<int>(entries_.size()); }

  /// `ended` went to `members` (its engines, in order).
  void publication_ended(int64_t version, const std::vector<int>& members,
                         const Publication& ended);

  /// Fenced engines that are not pulling; of several ranks, those that do not have version().
  std::vector<int> behind() const;
  /// An engine for `engine` to pull from, a rank from one of the same rank: another one each time,
  /// because one that was restarted serves nothing and is found out only by asking. None of `busy`.
  std::optional<int> next_peer(int engine, const std::vector<int>& busy = {});
  void pull_began(int engine) { entries_[static_cast<size_t>(engine)].is_pulling = true; }
  void pull_ended(int engine, int64_t version, bool has_committed);
  /// A fenced engine takes part in the next publication as it is, on trial: it is fenced again if
  /// it is not ready, also if the version is aborted.
  void readmit(int engine);

 private:
  struct Entry {
    int64_t version = 0;  // it is known to serve; 0: not known
    bool is_fenced = false;
    bool is_on_trial = false;
    bool is_pulling = false;
  };
  const Entry& at(int engine) const { return entries_[static_cast<size_t>(engine)]; }
  // The ranks of the engine that `engine` belongs to.
  std::span<const Entry> ranks_of(int engine) const;
  std::span<Entry> ranks_of(int engine);

  const bool in_place_;
  const int ranks_;
  std::vector<Entry> entries_;
  int64_t epoch_;
  int64_t version_ = 0;
  size_t last_peer_ = 0;
};

}  // namespace nibble
