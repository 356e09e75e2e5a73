#include "rollout/engine/prompt_corpus.h"

#include <gtest/gtest.h>

#include <deque>

#include "rollout/engine/lookup_drafter.h"
#include "rollout/engine/request.h"

namespace nibble {
namespace {

TEST(PromptCorpus, SamplesThatGoOnKeepTheirNumbersWhenOthersAreTrimmed) {
  PromptCorpus corpus(std::vector<int32_t>{1, 2, 3});
  const int32_t live = corpus.begin();
  for (int i = 0; i < 50; ++i) {
    const int32_t other = corpus.begin();
    for (int32_t t = 10; t < 30; ++t) corpus.extend(other, t);
    if (i % 3 == 0) {
      corpus.drop(other);
    } else {
      corpus.end(other);
    }
    corpus.trim(4);
    // What follows is guessed from the others, of which some are gone.
    corpus.extend(live, 1000 + i);  // so that its own past says nothing
    corpus.extend(live, 18);
    corpus.extend(live, 19);
    std::vector<DraftToken> guesses;
    corpus.propose(live, 4, guesses);
    if (i == 0) continue;
    ASSERT_EQ(guesses.size(), 4u) << i;
    for (int32_t g = 0; g < 4; ++g) EXPECT_EQ(guesses[static_cast<size_t>(g)].token, 20 + g);
  }
  EXPECT_EQ(corpus.num_live(), 1);
}

TEST(LookupDrafter, MemoryOfOnePromptIsBoundedWhileSamplesOverlap) {
  LookupDrafter drafter({.max_tokens = 1'000'000, .samples_per_prompt = 8});
  const std::vector<int32_t> prompt = {1, 2, 3};
  std::deque<uint64_t> open;
  int64_t most = 0;
  for (uint64_t id = 0; id < 2000; ++id) {
    GenerateRequest request;
    request.id = id;
    drafter.begin(request, prompt, {});
    open.push_back(id);
    for (int32_t t = 0; t < 100; ++t) drafter.extend(id, static_cast<int32_t>(id) + t);
    if (open.size() < 4) continue;
    drafter.end(open.front(), true);  // never is none open
    open.pop_front();
    most = std::max(most, drafter.num_bytes());
  }
  EXPECT_LE(most, int64_t{(2 * 8 + 5) * 110 * 80});
}

}  // namespace
}  // namespace nibble
