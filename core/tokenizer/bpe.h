#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nibble {

/// The rank and result of merging two tokens.
struct Merge {
  int32_t rank = -1;  ///< lower merges first; -1: the pair does not merge
  int32_t result = -1;
};

/// Hash table from a pair of token ids to its merge. Open addressing: one probe in the common case.
class MergeTable {
 public:
  explicit MergeTable(size_t num_merges);
  /// A later merge of the same pair replaces an earlier one. At most `num_merges` pairs.
  void insert(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = ~uint64_t{0};
    Merge merge;
  };
  size_t slot_of(uint64_t key) const;
  std::vector<Slot> slots_;  // a power of two, at most half full
};

/// What a byte-level BPE model is made of, already in bytes.
struct BpeModel {
  std::vector<std::pair<std::string, int32_t>> tokens;      ///< bytes, id; ids are distinct, >= 0
  std::vector<std::pair<std::string, std::string>> merges;  ///< in rank order
  bool ignore_merges = false;  ///< a piece that is a token is that token, merges or not
};

/// Byte-level byte pair encoding. Immutable; any thread may call its const methods.
class Bpe {
 public:
  /// Throws Error{kInvalidArgument} naming a merge whose parts or result are not tokens.
  explicit Bpe(BpeModel model);
  Bpe(const Bpe&) = delete;  // tokens_ points into spelling_
  Bpe(Bpe&&) = default;

  /// Appends the tokens of one piece of any length, n log n at worst. Bytes without a token
  /// vanish, as they do in `tokenizers` where there is no unknown token.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

  /// The id of the token that spells exactly `bytes`, or -1.
  int32_t find(std::string_view bytes) const;

 private:
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;
  void merge(std::string_view piece, std::vector<int32_t>& symbols) const;

  struct Whole {
    int32_t id = -1;
    bool direct = false;  // encode() of these bytes is this one token
  };
  std::vector<std::string> spelling_;  // keys of tokens_ point here
  std::unordered_map<std::string_view, Whole> tokens_;
  std::array<int32_t, 256> byte_ids_{};  // -1: no token
  MergeTable merges_;
};

}  // namespace nibble
