#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "rollout/engine/block_pool.h"
#include "rollout/engine/engine_config.h"
#include "rollout/engine/prefix_tree.h"
#include "rollout/engine/sequence.h"

namespace nibble {

/// Where the keys and values of prompts and responses lie: which blocks they hold, and the slot
/// table that attention reads. One member of a group goes on in the prompt's last, partial block,
/// the others begin in blocks of their own. One thread.
class KvPlacement {
 public:
  ///   route_bytes  of Group::routes for one token; 0: the model has none
  KvPlacement(const EngineConfig& config, int64_t route_bytes);

  /// Blocks that can be had, of those that hold nothing and those that nobody uses.
  int64_t num_available() const { return pool_.num_free() + tree_.num_idle(); }
  /// How many of them start() takes for a prompt.
  int64_t blocks_to_start(const Group& group) const;
  /// Blocks that `tokens` response tokens need, for a member that would start now.
  int64_t blocks_for_response(const Group& group, int64_t tokens) const;

  /// Gives a prompt its blocks: those whose tokens are in the cache, and new ones. The caller has
  /// seen that they are available.
  void start(Group& group);
  /// The prompt is computed: others may use its whole blocks.
  void share_prompt(Group& group);
  /// Takes everything back from a prompt; what was shared stays for a while.
  void stop(Group& group);

  /// Row of the slot table of a member that begins to run.
  void enter_lane(Sequence& sequence, int64_t lane);
  /// Gives it slots for the first `tokens` tokens of its response; false, and nothing changes, if
  /// there is no memory.
  bool grow(Sequence& sequence, int64_t tokens);
  /// Takes its slots and lane; returns the lane.
  int64_t leave_lane(Sequence& sequence);
  /// Of a group whose last member ends: its response may be the beginning of a prompt. Goes before
  /// leave_lane() and stop().
  void share_response(Sequence& last);

  /// Nothing that is in the cache will be found by later prompts.
  void invalidate() { tree_.invalidate(); }
  /// A little of what invalidate() left to do, once a step.
  void tidy() { tree_.tidy(kTidiedBlocks); }

  const int32_t* slot_table() const { return slot_table_.data(); }
  int64_t block_tokens() const { return block_tokens_; }
  const PrefixTree& tree() const { return tree_; }

 private:
  static constexpr int64_t kTidiedBlocks = 512;
  int32_t* lane_slots(int64_t lane) { return slot_table_.data() + lane * max_positions_; }
  void fill_slots(int64_t lane, int64_t position, int32_t block, int64_t offset);
  void fill_prompt_slots(const Group& group, int64_t lane);
  bool needs_routes(const Group& group) const { return group.want_routes && route_bytes_ > 0; }
  int64_t tail_room(const Group& group) const;
  int32_t take_block();
  /// Known blocks of the prompt, at most all but the one with its last token.
  std::vector<PrefixTree::Node*> known_blocks(const Group& group) const;

  const int64_t block_tokens_;
  const int64_t max_positions_;
  const int64_t route_bytes_;
  BlockPool pool_;
  PrefixTree tree_;
  std::vector<int32_t> slot_table_;  // [max_running, max_positions]
};

}  // namespace nibble
