#include "coordinator/publication.h"

#include <gtest/gtest.h>

#include "coordinator/engine_fleet.h"

namespace nibble {
namespace {

// Answers every call of engine e with `errors[e]` (empty: done) until the decision is recorded.
void run(Publication& publication, const std::vector<std::string>& errors) {
  std::vector<PublicationCall> calls = publication.begin();
  while (!calls.empty()) {
    const PublicationCall call = calls.back();
    calls.pop_back();
    if (call.step == PublicationStep::kAbort) continue;
    const bool is_record = call.step == PublicationStep::kRecord;
    const auto next = publication.take(
        {call, is_record ? "" : errors[static_cast<size_t>(call.engine)], "report"});
    calls.insert(calls.end(), next.begin(), next.end());
  }
  ASSERT_TRUE(publication.is_done());
}

TEST(Publication, EnginesOnTrialHaveNoSayUnlessThereAreNoOthers) {
  struct Case {
    std::vector<bool> on_trial;
    std::vector<std::string> errors;
    bool commits;
  };
  for (const Case& one : std::vector<Case>{
           {{false, true, true}, {"", "down", "down"}, true},
           {{false, false, false}, {"", "down", "down"}, false},
           {{false, false, true}, {"down", "down", ""}, false},
           {{false, false, true}, {"", "down", ""}, true},
           {{true, true}, {"", "down"}, true},
           {{true, true, true}, {"", "down", "down"}, false},
           {{}, {"", "down"}, true},
       }) {
    Publication publication(static_cast<int>(one.errors.size()), 2, one.on_trial);
    run(publication, one.errors);
    EXPECT_EQ(publication.is_committed(), one.commits) << one.on_trial.size();
    for (size_t e = 0; e < one.errors.size(); ++e) {
      EXPECT_EQ(publication.state(static_cast<int>(e)) == EngineState::kCommitted,
                one.commits && one.errors[e].empty());
    }
  }
}

TEST(EngineFleet, AnEngineOnTrialIsFencedAgainAlsoByAVersionThatIsAborted) {
  EngineFleet fleet(3, 1);
  Publication first(3, 1);
  run(first, {"", "", "down"});
  fleet.publication_ended(1, {0, 1, 2}, first);
  EXPECT_TRUE(fleet.is_fenced(2));
  fleet.readmit(2);
  EXPECT_TRUE(fleet.is_on_trial(2));
  EXPECT_EQ(fleet.members(), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(fleet.serving(), (std::vector<int>{0, 1}));
  Publication second(3, 1, {false, false, true});
  run(second, {"down", "down", "down"});
  ASSERT_FALSE(second.is_committed());
  fleet.publication_ended(2, {0, 1, 2}, second);
  EXPECT_TRUE(fleet.is_fenced(2));
  EXPECT_FALSE(fleet.is_fenced(0)) << "an aborted version fences nobody else";
  // Ready when the others were not: it stays on trial.
  fleet.readmit(2);
  Publication third(3, 1, {false, false, true});
  run(third, {"down", "down", ""});
  fleet.publication_ended(3, {0, 1, 2}, third);
  EXPECT_TRUE(fleet.is_on_trial(2));
  Publication fourth(3, 1, {false, false, true});
  run(fourth, {"", "", ""});
  fleet.publication_ended(4, {0, 1, 2}, fourth);
  EXPECT_FALSE(fleet.is_on_trial(2));
  EXPECT_EQ(fleet.serving(), (std::vector<int>{0, 1, 2}));
}

TEST(Publication, RanksOfOneEngineAreFencedTogether) {
  Publication publication(4, 2, {}, 2);
  run(publication, {"", "", "down", ""});
  ASSERT_TRUE(publication.is_committed());
  EXPECT_EQ(publication.members(), (std::vector<int>{0, 1}));
  EXPECT_EQ(publication.failure(2), "down");
  EXPECT_EQ(publication.failure(3), "another rank of its engine failed: down");
}

TEST(EngineFleet, AnEngineIsBackWhenAllItsRanksHaveCaughtUp) {
  EngineFleet fleet(4, 1, false, 2);
  Publication first(4, 1, {}, 2);
  run(first, {"", "", "", ""});
  fleet.publication_ended(1, {0, 1, 2, 3}, first);
  EXPECT_EQ(fleet.serving(), (std::vector<int>{0, 2}));
  Publication second(4, 1, {}, 2);
  run(second, {"", "", "", "down"});
  fleet.publication_ended(2, {0, 1, 2, 3}, second);
  EXPECT_EQ(fleet.serving(), (std::vector<int>{0}));
  EXPECT_EQ(fleet.behind(), (std::vector<int>{2, 3}));
  EXPECT_EQ(fleet.members(), (std::vector<int>{0, 1}));
  // Each from the same rank of the other engine.
  EXPECT_EQ(fleet.next_peer(2), 0);
  EXPECT_EQ(fleet.next_peer(3), 1);
  fleet.pull_began(2);
  fleet.pull_began(3);
  fleet.pull_ended(2, 2, true);
  EXPECT_EQ(fleet.serving(), (std::vector<int>{0}));
  fleet.pull_ended(3, 2, false);
  EXPECT_EQ(fleet.members(), (std::vector<int>{0, 1})) << "one of its ranks has version 1";
  EXPECT_EQ(fleet.behind(), (std::vector<int>{3})) << "the other has caught up and waits";
  fleet.pull_began(3);
  fleet.pull_ended(3, 2, true);
  EXPECT_EQ(fleet.members(), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(fleet.serving(), (std::vector<int>{0, 2}));
}

}  // namespace
}  // namespace nibble
