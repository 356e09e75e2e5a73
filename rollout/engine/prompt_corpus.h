#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/engine/drafter.h"

namespace nibble {

/// What has been said after one prompt: the prompt itself, samples that grow side by side, and
/// samples of earlier epochs. Finds where the last tokens of a sample stood before, and what
/// followed them. One thread.
class PromptCorpus {
 public:
  explicit PromptCorpus(std::span<const int32_t> prompt);

  /// Adds a sample and returns its number.
  int32_t begin();
  void extend(int32_t sample, int32_t token);
  /// It goes on no more; it is kept as one that later samples may repeat.
  void end(int32_t sample);
  /// Drops a sample that goes on no more, or is not worth keeping.
  void drop(int32_t sample);

  /// Guesses what follows the tokens of `sample`: places where its last tokens stood before vote,
  /// the more of them agree the more weight, and those that are contradicted leave.
  void propose(int32_t sample, int64_t most, std::vector<DraftToken>& out) const;

  int64_t num_live() const { return num_live_; }
  int64_t num_tokens() const { return num_tokens_; }
  /// Keeps the newest finished samples only: `most` of them at least, at most twice as many.
  /// Samples that go on stay.
  void trim(int64_t most);

 private:
  struct Place {
    int32_t sample = -1;
    int32_t last = -1;  // index of the last token of the pair
  };
  struct Sample {
    std::vector<int32_t> tokens;
    std::vector<Place> before;  // where the pair that ends here stood before
    bool is_live = false;
    int32_t number = -1;  // that begin() gave it
  };
  struct Voter {
    const Sample* sample;
    size_t next;  // index of what follows
    double weight;
    int length;  // tokens that agree
  };
  static uint64_t pair_key(const Sample& sample, size_t last);
  // `place`: among samples_.
  void push(int32_t place, int32_t token);
  Sample& live(int32_t number) { return samples_[static_cast<size_t>(place_of_.at(number))]; }
  int agreement(const Sample& one, size_t one_last, const Sample& other, size_t other_last) const;
  std::vector<Voter> find_voters(const Sample& own) const;
  void index_again();

  std::vector<int32_t> head_;    // last tokens of the prompt: what a response begins behind
  std::vector<Sample> samples_;  // the first is the prompt
  std::unordered_map<int32_t, int32_t> place_of_;  // of each live sample, by its number
  int32_t next_number_ = 0;
  std::unordered_map<uint64_t, Place> last_place_;  // of a pair of tokens
  int64_t num_live_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace nibble
