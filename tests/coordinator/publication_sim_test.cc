// The publication protocol under random schedules of faults, in simulated time.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/coordinator/publication_sim.h"

namespace nibble {
namespace {

// NIBBLE_SIM_SCHEDULES and NIBBLE_SIM_SEED choose others: a million were run once (docs).
int64_t from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

TEST(PublicationSim, TheInvariantsHoldUnderEveryScheduleOfFaults) {
  const SimModel model;
  const int64_t first = from_environment("NIBBLE_SIM_SEED", 1);
  const int64_t schedules = from_environment("NIBBLE_SIM_SCHEDULES", 10'000);
  SimCounts counts;
  for (int64_t seed = first; seed < first + schedules; ++seed) {
    const std::string story = PublicationSim(model, static_cast<uint64_t>(seed), counts).run();
    ASSERT_EQ(story, "") << "seed " << seed;
  }
  for (size_t fault = 0; fault < kNumSimFaults; ++fault) {
    EXPECT_GT(counts.faults[fault], 0) << "fault " << fault << " never happened";
    RecordProperty("fault_" + std::to_string(fault), std::to_string(counts.faults[fault]));
  }
  EXPECT_GT(counts.committed, 0);
  EXPECT_GT(counts.aborted, 0);
  EXPECT_GT(counts.fenced, 0);
  EXPECT_GT(counts.pulled, 0);
  EXPECT_GT(counts.readmitted, 0);
  EXPECT_GT(counts.deltas, 0);
  EXPECT_GT(counts.poisoned, 0);
  printf(
      "schedules=%ld committed=%ld aborted=%ld fenced=%ld pulled=%ld readmitted=%ld poisoned=%ld\n",
      schedules, counts.committed, counts.aborted, counts.fenced, counts.pulled, counts.readmitted,
      counts.poisoned);
  for (size_t fault = 0; fault < kNumSimFaults; ++fault) {
    printf("fault_%zu=%ld\n", fault, counts.faults[fault]);
  }
}

}  // namespace
}  // namespace nibble
