#include "core/models/context_share.h"

#include <algorithm>
#include <memory>

namespace nibble {
namespace {

// Rows that are divided together: those of a long sequence, or of all the short ones, whose cost
// hardly grows along them and which are better left whole.
std::vector<std::vector<int64_t>> parts_of(const ops::PackedIndex& index, int ranks) {
  const int64_t total = index.tokens();
  const int64_t shortest = total / (8 * ranks);  // that is cut
  std::vector<std::vector<int64_t>> parts(1);
  for (int64_t begin = 0, end = 0; begin < total; begin = end) {
    const auto first = [&](int64_t row) { return index.first[static_cast<size_t>(row)]; };
    while (end < total && first(end) == first(begin)) ++end;
    const bool is_long = end - begin > shortest;
    std::vector<int64_t>& part = is_long ? parts.emplace_back() : parts[0];
    for (int64_t row = begin; row < end; ++row) part.push_back(row);
  }
  return parts;
}

// For each rank, of each part, one of 2n even pieces and the one as far from the other end: 0 and
// 2n-1, 1 and 2n-2, ...
std::vector<int64_t> balanced_order(const ops::PackedIndex& index, int ranks) {
  std::vector<int64_t> order;
  const auto parts = parts_of(index, ranks);
  const int64_t pieces = 2 * ranks;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    for (const std::vector<int64_t>& part : parts) {
      const auto rows = std::ssize(part);
      for (const int64_t piece : {rank, pieces - 1 - rank}) {
        order.insert(order.end(), part.begin() + rows * piece / pieces,
                     part.begin() + rows * (piece + 1) / pieces);
      }
    }
  }
  return order;
}

std::vector<int64_t> inverse_of(const std::vector<int64_t>& order) {
  std::vector<int64_t> place(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    place[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  }
  return place;
}

// The rank's tokens. Those that follow each other in one sequence have one list of keys, which ends
// with the last one's: flash attention aligns queries to the end of their keys.
class IndexCut {
 public:
  IndexCut(const ops::PackedIndex& whole, const std::vector<int64_t>& place)
      : whole_(whole), place_(place) {
    cut_->other_keys = whole.tokens();
  }

  void append(int64_t row) {
    const auto at = static_cast<size_t>(row);
    const bool goes_on = row == last_ + 1 && last_ >= 0 && whole_.first[at] == whole_.first[at - 1];
    if (!goes_on) begin_ = std::ssize(cut_->rows);
    for (int64_t key = std::ssize(cut_->rows) - begin_; key < whole_.count[at]; ++key) {
      const int32_t from = whole_.rows[static_cast<size_t>(whole_.first[at] + key)];
      cut_->rows.push_back(static_cast<int32_t>(place_[static_cast<size_t>(from)]));
    }
    cut_->position.push_back(whole_.position[at]);
    cut_->first.push_back(begin_);
    cut_->count.push_back(whole_.count[at]);
    last_ = row;
  }

  ops::SharedIndex finish() { return std::move(cut_); }

 private:
  const ops::PackedIndex& whole_;
  const std::vector<int64_t>& place_;
  std::shared_ptr<ops::PackedIndex> cut_ = std::make_shared<ops::PackedIndex>();
  int64_t begin_ = 0;
  int64_t last_ = -1;
};

}  // namespace

ContextShare share_context(const PackedBatch& whole, int rank, int ranks) {
  const auto total = std::ssize(whole.tokens);
  ContextShare share;
  share.rows = {total, ranks, rank};
  share.order = balanced_order(*whole.index, ranks);
  share.place = inverse_of(share.order);
  IndexCut cut(*whole.index, share.place);
  for (int64_t i = share.rows.begin(); i < share.rows.begin() + share.rows.rows(); ++i) {
    const int64_t row = share.order[static_cast<size_t>(i)];
    share.batch.tokens.push_back(whole.tokens[static_cast<size_t>(row)]);
    cut.append(row);
  }
  share.batch.index = cut.finish();
  // Targets go with the row that predicts them.
  std::vector<int64_t> count(static_cast<size_t>(ranks));
  std::vector<int64_t> among_own;
  std::vector<int> taker;
  for (size_t i = 0; i < whole.target.size(); ++i) {
    const int64_t at = share.place[static_cast<size_t>(whole.target_row[i])];
    const int by = share.rows.taker_of(at);
    taker.push_back(by);
    among_own.push_back(count[static_cast<size_t>(by)]++);
    if (by != rank) continue;
    share.batch.target_row.push_back(at - share.rows.begin());
    share.batch.target.push_back(whole.target[i]);
  }
  const int64_t most = std::max<int64_t>(1, *std::max_element(count.begin(), count.end()));
  share.batch.target_row.resize(static_cast<size_t>(most), 0);
  share.batch.target.resize(static_cast<size_t>(most), 0);
  for (size_t i = 0; i < taker.size(); ++i) {
    share.target_place.push_back(taker[i] * most + among_own[i]);
  }
  return share;
}

}  // namespace nibble
