#include "core/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <queue>

#include "core/base/fail.h"
#include "core/tokenizer/byte_alphabet.h"

namespace nibble {
namespace {

// Up to here a scan for the best pair beats a heap.
constexpr size_t kShortPiece = 48;

uint64_t pair_key(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

std::string alphabet_text(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) out += alphabet_of_byte(static_cast<uint8_t>(c));
  return out;
}

}  // namespace

MergeTable::MergeTable(size_t num_merges) : slots_(std::bit_ceil(2 * num_merges + 2)) {}

size_t MergeTable::slot_of(uint64_t key) const {
  const size_t mask = slots_.size() - 1;
  uint64_t hash = key * 0x9E3779B97F4A7C15u;
  size_t at = (hash ^ (hash >> 32)) & mask;
  while (slots_[at].key != key && slots_[at].merge.rank >= 0) at = (at + 1) & mask;
  return at;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = pair_key(left, right);
  slots_[slot_of(key)] = {key, merge};
}

Merge MergeTable::find(int32_t left, int32_t right) const {
  return slots_[slot_of(pair_key(left, right))].merge;
}

Bpe::Bpe(BpeModel model) : merges_(model.merges.size()) {
  spelling_.reserve(model.tokens.size());
  tokens_.reserve(model.tokens.size());
  byte_ids_.fill(-1);
  for (auto& [bytes, id] : model.tokens) {
    const std::string_view spelled = spelling_.emplace_back(std::move(bytes));
    tokens_[spelled] = {id, false};
    if (spelled.size() == 1) byte_ids_[static_cast<uint8_t>(spelled[0])] = id;
  }
  int32_t rank = 0;
  for (const auto& [left, right] : model.merges) {
    const int32_t result = find(left + right);
    const int32_t left_id = find(left);
    const int32_t right_id = find(right);
    if (left_id < 0 || right_id < 0 || result < 0) {
      fail(ErrorCode::kInvalidArgument,
           "model.merges[{}] joins '{}' and '{}', but not all of these and their join are in "
           "model.vocab",
           rank, alphabet_text(left), alphabet_text(right));
    }
    merges_.insert(left_id, right_id, {rank++, result});
  }
  // A token that its own merges produce can be found by one look-up of the piece.
  std::vector<int32_t> symbols;
  for (auto& [bytes, whole] : tokens_) {
    merge(bytes, symbols);
    whole.direct = model.ignore_merges || (symbols.size() == 1 && symbols[0] == whole.id);
  }
}

int32_t Bpe::find(std::string_view bytes) const {
  const auto found = tokens_.find(bytes);
  return found == tokens_.end() ? -1 : found->second.id;
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto found = tokens_.find(piece);
  if (found != tokens_.end() && found->second.direct) {
    ids.push_back(found->second.id);
    return;
  }
  std::vector<int32_t> symbols;
  merge(piece, symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::merge(std::string_view piece, std::vector<int32_t>& symbols) const {
  symbols.clear();
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) symbols.push_back(id);
  }
  if (symbols.size() <= kShortPiece) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
}

void Bpe::merge_short(std::vector<int32_t>& symbols) const {
  std::array<Merge, kShortPiece> pairs;  // pairs[i]: symbols[i] with symbols[i + 1]
  size_t size = symbols.size();
  const auto pair_at = [&](size_t i) { return merges_.find(symbols[i], symbols[i + 1]); };
  for (size_t i = 0; i + 1 < size; ++i) pairs[i] = pair_at(i);
  while (size > 1) {
    size_t best = size;
    for (size_t i = 0; i + 1 < size; ++i) {
      if (pairs[i].rank >= 0 && (best == size || pairs[i].rank < pairs[best].rank)) best = i;
    }
    if (best == size) break;
    symbols[best] = pairs[best].result;
    std::copy(symbols.begin() + best + 2, symbols.begin() + size, symbols.begin() + best + 1);
    std::copy(pairs.begin() + best + 1, pairs.begin() + size - 1, pairs.begin() + best);
    --size;
    if (best > 0) pairs[best - 1] = pair_at(best - 1);
    if (best + 1 < size) pairs[best] = pair_at(best);
  }
  symbols.resize(size);
}

void Bpe::merge_long(std::vector<int32_t>& symbols) const {
  struct Node {
    int64_t previous;
    int64_t next;
  };
  struct Candidate {
    int32_t rank;
    int64_t left;
    int32_t result;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  const auto size = static_cast<int64_t>(symbols.size());
  std::vector<Node> nodes(symbols.size());
  std::vector<Candidate> initial;
  for (int64_t i = 0; i < size; ++i) {
    nodes[i] = {i - 1, i + 1 < size ? i + 1 : -1};
    if (i + 1 == size) break;
    const Merge merge = merges_.find(symbols[i], symbols[i + 1]);
    if (merge.rank >= 0) initial.push_back({merge.rank, i, merge.result});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap(std::greater<>(),
                                                                              std::move(initial));
  const auto offer = [&](int64_t left) {
    if (left < 0 || nodes[left].next < 0) return;
    const Merge merge = merges_.find(symbols[left], symbols[nodes[left].next]);
    if (merge.rank >= 0) heap.push({merge.rank, left, merge.result});
  };
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    const int64_t right = symbols[best.left] < 0 ? -1 : nodes[best.left].next;
    // An entry is stale when one of its halves has merged elsewhere since.
    if (right < 0 || merges_.find(symbols[best.left], symbols[right]).rank != best.rank) continue;
    symbols[best.left] = best.result;
    symbols[right] = -1;
    nodes[best.left].next = nodes[right].next;
    if (nodes[right].next >= 0) nodes[nodes[right].next].previous = best.left;
    offer(nodes[best.left].previous);
    offer(best.left);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), -1), symbols.end());
}

}  // namespace nibble
