#include "core/models/context_share.h"

#include <algorithm>
#include <memory>

namespace nibble {
namespace {

// Pieces 0, 2n-1, 1, 2n-2, ... of 2n even ones.
std::vector<int64_t> balanced_order(int64_t total, int ranks) {
  std::vector<int64_t> order;
  const int pieces = 2 * ranks;
  const auto append = [&](int piece) {
    for (int64_t row = total * piece / pieces; row < total * (piece + 1) / pieces; ++row) {
      order.push_back(row);
    }
  };
  for (int rank = 0; rank < ranks; ++rank) {
    append(rank);
    append(pieces - 1 - rank);
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
  share.order = balanced_order(total, ranks);
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
