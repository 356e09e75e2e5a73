// How context ranks divide a packed batch: nothing twice, nothing left out, as much work each.
#include "core/models/context_share.h"

#include <gtest/gtest.h>

#include <numeric>

namespace nibble {
namespace {

std::vector<int32_t> ids(int64_t count, int32_t first) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), first);
  return out;
}

PackedBatch batch_of(std::span<const std::pair<int64_t, std::vector<int64_t>>> shapes) {
  std::vector<SequenceGroup> groups;
  int32_t next = 0;
  for (const auto& [prompt, responses] : shapes) {
    SequenceGroup group{ids(prompt, next), {}};
    next += 1000;
    for (const int64_t length : responses) {
      group.responses.push_back(ids(length, next));
      next += 1000;
    }
    groups.push_back(std::move(group));
  }
  return pack_groups(groups);
}

// Rows of the whole batch whose keys a token sees, in order.
std::vector<int64_t> keys_of(const ops::PackedIndex& index, size_t token) {
  const auto first = index.rows.begin() + index.first[token];
  return {first, first + index.count[token]};
}

class ContextShareTest : public ::testing::TestWithParam<int> {};

TEST_P(ContextShareTest, EveryTokenIsSomebodysAndSeesWhatItSaw) {
  const int ranks = GetParam();
  const std::vector<std::pair<int64_t, std::vector<int64_t>>> shapes = {
      {5, {7, 1, 12}}, {1, {2}}, {3, {}}, {9, {30}}};
  const PackedBatch whole = batch_of(shapes);
  const auto total = std::ssize(whole.tokens);
  std::vector<int> taken(static_cast<size_t>(total));
  std::vector<std::pair<int64_t, int32_t>> targets;  // of all ranks, one after another
  std::vector<ContextShare> shares;
  for (int rank = 0; rank < ranks; ++rank) {
    const ContextShare share = share_context(whole, rank, ranks);
    EXPECT_EQ(std::ssize(share.batch.tokens), (total + ranks - 1) / ranks);
    EXPECT_EQ(share.batch.index->num_keys(), total);
    for (size_t i = 0; i < share.batch.tokens.size(); ++i) {
      const int64_t row = share.order[static_cast<size_t>(share.rows.begin()) + i];
      ++taken[static_cast<size_t>(row)];
      EXPECT_EQ(share.batch.tokens[i], whole.tokens[static_cast<size_t>(row)]);
      EXPECT_EQ(share.batch.index->position[i], whole.index->position[static_cast<size_t>(row)]);
      std::vector<int64_t> seen = keys_of(*share.batch.index, i);
      for (int64_t& key : seen) key = share.order[static_cast<size_t>(key)];
      EXPECT_EQ(seen, keys_of(*whole.index, static_cast<size_t>(row))) << "row " << row;
    }
    for (size_t i = 0; i < share.batch.target.size(); ++i) {
      const int64_t at = share.rows.begin() + share.batch.target_row[i];
      targets.emplace_back(share.order[static_cast<size_t>(at)], share.batch.target[i]);
    }
    shares.push_back(share);
  }
  for (const int times : taken) EXPECT_GE(times, 1);
  ASSERT_EQ(targets.size() % static_cast<size_t>(ranks), 0U);
  for (const ContextShare& share : shares) {
    ASSERT_EQ(share.target_place.size(), whole.target.size());
    for (size_t i = 0; i < whole.target.size(); ++i) {
      const auto& [row, target] = targets[static_cast<size_t>(share.target_place[i])];
      EXPECT_EQ(row, whole.target_row[i]);
      EXPECT_EQ(target, whole.target[i]);
    }
    for (size_t row = 0; row < share.place.size(); ++row) {
      EXPECT_EQ(share.order[static_cast<size_t>(share.place[row])], static_cast<int64_t>(row));
    }
  }
}

TEST_P(ContextShareTest, AttentionIsEven) {
  const int ranks = GetParam();
  using Shapes = std::vector<std::pair<int64_t, std::vector<int64_t>>>;
  for (const Shapes& shapes : {Shapes{{8, {4096}}}, Shapes{{8, {4096, 1500}}, {3, {700}}},
                               Shapes{{1, {2000}}, {1, std::vector<int64_t>(20, 100)}},
                               Shapes{{1, {3000}}, {1, std::vector<int64_t>(12, 250)}}}) {
    const PackedBatch whole = batch_of(shapes);
    std::vector<double> keys;
    for (int rank = 0; rank < ranks; ++rank) {
      const ContextShare share = share_context(whole, rank, ranks);
      const auto& count = share.batch.index->count;
      keys.push_back(std::accumulate(count.begin(), count.end(), 0.0));
    }
    const double all = std::accumulate(keys.begin(), keys.end(), 0.0);
    for (const double own : keys) EXPECT_NEAR(own, all / ranks, 0.05 * all / ranks);
  }
}

TEST_P(ContextShareTest, OneTokenIsTakenByAllAndCountsOnce) {
  const int ranks = GetParam();
  const PackedBatch whole =
      batch_of(std::vector<std::pair<int64_t, std::vector<int64_t>>>{{1, {1}}});
  for (int rank = 0; rank < ranks; ++rank) {
    const ContextShare share = share_context(whole, rank, ranks);
    EXPECT_EQ(share.batch.tokens, whole.tokens);
    EXPECT_EQ(share.target_place, std::vector<int64_t>{0});  // the lowest rank's
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, ContextShareTest, ::testing::Values(1, 2, 3, 4, 8));

}  // namespace
}  // namespace nibble
