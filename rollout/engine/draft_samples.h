#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/engine/kv_placement.h"
#include "rollout/engine/sequence.h"

namespace nibble {

/// A sample as a draft model sees it.
struct DraftedSample {
  Sequence sequence;             ///< completion.tokens: what was drawn; its prompt is the group's
  std::vector<int32_t> written;  ///< response tokens in the cache, guesses included
  uint64_t asked_in = 0;         ///< the round that last asked for guesses

  /// Response tokens that were drawn.
  int64_t num_drawn() const { return sequence.num_tokens(); }
  /// Forgets those in the cache that were not drawn as guessed, and the last drawn one, which has
  /// to be computed for what follows it.
  void keep_what_was_drawn();
  /// Tokens that have to be computed before the next guess, the prompt's included.
  int64_t num_behind() const;
};

/// The samples of a draft model, and which of them have a place in its cache. Memory is bounded: a
/// sample has a place when it is asked for, if there is room; what was not asked for in this round
/// gives way, the longest unused first. Samples with one prompt share its blocks, as do prompts
/// that begin alike. One thread.
class DraftSamples {
 public:
  /// Sizes as of an engine: max_running samples with a place, kv_slots tokens.
  explicit DraftSamples(const EngineConfig& config);

  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn);
  void extend(uint64_t id, int32_t token);
  void end(uint64_t id, bool is_whole);
  DraftedSample& at(uint64_t id) { return *samples_.at(id); }

  /// A round begins; the samples that ask in it keep their places.
  void begin_round(std::span<DraftedSample* const> asking);
  /// A place for the prompt and the first `tokens` tokens of the response; false, and the sample
  /// keeps what it has, if there is no room.
  bool place(DraftedSample& sample, int64_t tokens);
  /// Prompt tokens were computed.
  void add_computed(Group& group, int64_t tokens);
  /// Other weights from now on. Samples go on with what is in the cache: their next guesses may be
  /// worse for it. Later prompts find nothing of it.
  void change_weights();

  const int32_t* slot_table() const { return kv_.slot_table(); }
  int64_t num_tokens() const { return num_tokens_; }  ///< held on the host, prompts included
  int64_t num_placed() const { return num_placed_; }
  int64_t free_slots() const { return kv_.num_available() * kv_.block_tokens(); }

 private:
  struct ByPrompt {
    using is_transparent = void;
    bool operator()(const auto& a, const auto& b) const { return less(prompt(a), prompt(b)); }
    static std::span<const int32_t> prompt(std::span<const int32_t> tokens) { return tokens; }
    static std::span<const int32_t> prompt(const std::shared_ptr<Group>& g) { return g->prompt; }
    static bool less(std::span<const int32_t> a, std::span<const int32_t> b);
  };
  bool make_room(const DraftedSample& sample);
  bool has_room(const DraftedSample& sample) const;
  void displace(DraftedSample& sample);

  const int64_t max_positions_;
  KvPlacement kv_;
  std::unordered_map<uint64_t, std::unique_ptr<DraftedSample>> samples_;
  std::set<std::shared_ptr<Group>, ByPrompt> groups_;  // shared: with their samples
  std::vector<DraftedSample*> by_lane_;                // null: free
  uint64_t round_ = 0;
  int64_t num_tokens_ = 0;
  int64_t num_placed_ = 0;
};

}  // namespace nibble
