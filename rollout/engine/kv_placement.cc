#include "rollout/engine/kv_placement.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

int64_t blocks_of(int64_t tokens, int64_t block_tokens) {
  return (tokens + block_tokens - 1) / block_tokens;
}

// Bytes of `count` elements from `begin` on of two vectors, one behind the other.
std::vector<uint8_t> slice(const std::vector<uint8_t>& first, const std::vector<uint8_t>& second,
                           int64_t begin, int64_t count) {
  std::vector<uint8_t> out;
  for (int64_t i = begin; i < begin + count; ++i) {
    const auto split = std::ssize(first);
    out.push_back(i < split ? first[static_cast<size_t>(i)]
                            : second[static_cast<size_t>(i - split)]);
  }
  return out;
}

}  // namespace

KvPlacement::KvPlacement(const EngineConfig& config, int64_t route_bytes)
    : block_tokens_(config.block_tokens),
      max_positions_(config.max_positions),
      route_bytes_(route_bytes),
      pool_(config.kv_slots / config.block_tokens),
      tree_(pool_),
      slot_table_(static_cast<size_t>(config.max_running * config.max_positions)) {}

std::vector<PrefixTree::Node*> KvPlacement::known_blocks(const Group& group) const {
  std::vector<PrefixTree::Node*> known;
  const int64_t most = (group.prompt_tokens() - 1) / block_tokens_;
  const std::span<const int32_t> prompt(group.prompt);
  while (std::ssize(known) < most) {
    PrefixTree::Node* const node =
        tree_.find(known.empty() ? nullptr : known.back(),
                   prompt.subspan(known.size() * static_cast<size_t>(block_tokens_),
                                  static_cast<size_t>(block_tokens_)));
    if (node == nullptr) break;
    // Routes that were recorded once stay as they are; others must come with the block.
    const bool routes_are_there =
        group.routed >= (std::ssize(known) + 1) * block_tokens_ || !node->routes.empty();
    if (needs_routes(group) && !routes_are_there) break;
    known.push_back(node);
  }
  return known;
}

int64_t KvPlacement::blocks_to_start(const Group& group) const {
  int64_t idle = 0;
  int64_t known = 0;
  for (const PrefixTree::Node* node : known_blocks(group)) {
    ++known;
    idle += tree_.is_idle(*node) ? 1 : 0;
  }
  return blocks_of(group.prompt_tokens(), block_tokens_) - known + idle;
}

int64_t KvPlacement::tail_room(const Group& group) const {
  return (block_tokens_ - group.prompt_tokens() % block_tokens_) % block_tokens_;
}

int64_t KvPlacement::blocks_for_response(const Group& group, int64_t tokens) const {
  const int64_t room = group.tail_owner == nullptr ? tail_room(group) : 0;
  return blocks_of(std::max<int64_t>(0, tokens - room), block_tokens_);
}

int32_t KvPlacement::take_block() {
  if (pool_.num_free() == 0) tree_.evict();
  return pool_.take();
}

void KvPlacement::start(Group& group) {
  group.shared = known_blocks(group);
  for (PrefixTree::Node* node : group.shared) {
    tree_.acquire(*node);
    group.blocks.push_back(node->block);
    const int64_t end = std::ssize(group.blocks) * block_tokens_;
    if (needs_routes(group) && group.routed < end) {
      // Tokens that this group has seen computed keep the routes of that time.
      const int64_t known = std::max<int64_t>(0, group.routed - (end - block_tokens_));
      group.routes.insert(group.routes.end(), node->routes.begin() + known * route_bytes_,
                          node->routes.end());
    }
    group.routed = std::max(group.routed, end);
  }
  group.computed = std::ssize(group.blocks) * block_tokens_;
  const int64_t wanted = blocks_of(group.prompt_tokens(), block_tokens_);
  while (std::ssize(group.blocks) < wanted) group.blocks.push_back(take_block());
}

void KvPlacement::share_prompt(Group& group) {
  if (group.is_stale) return;
  const std::span<const int32_t> prompt(group.prompt);
  const auto length = static_cast<size_t>(block_tokens_);
  bool has_moved = false;
  for (size_t i = group.shared.size(); (i + 1) * length <= prompt.size(); ++i) {
    PrefixTree::Node* const above = group.shared.empty() ? nullptr : group.shared.back();
    std::vector<uint8_t> routes;
    // A block is found by those that today's weights serve: others' routes do not go with it.
    if (needs_routes(group) && !group.has_old_routes) {
      routes = slice(group.routes, {}, static_cast<int64_t>(i) * block_tokens_ * route_bytes_,
                     block_tokens_ * route_bytes_);
    }
    PrefixTree::Node* node = tree_.find(above, prompt.subspan(i * length, length));
    if (node == nullptr) {
      node = tree_.insert(above, prompt.subspan(i * length, length), group.blocks[i],
                          std::move(routes));
    } else {
      // Computed side by side with somebody else: the same values. One copy will do.
      if (node->routes.empty()) tree_.set_routes(*node, std::move(routes));
      pool_.release(group.blocks[i]);
      group.blocks[i] = node->block;
      has_moved = true;
    }
    tree_.acquire(*node);
    group.shared.push_back(node);
  }
  if (!has_moved) return;
  for (const Sequence* member : group.members) {
    if (member->lane >= 0) fill_prompt_slots(group, member->lane);
  }
}

void KvPlacement::stop(Group& group) {
  NIBBLE_CHECK(group.num_running == 0 && group.tail_owner == nullptr,
               "a prompt is taken from {} running sequences", group.num_running);
  for (size_t i = group.shared.size(); i < group.blocks.size(); ++i) {
    pool_.release(group.blocks[i]);
  }
  // The last first: of blocks that nobody uses, those at the end of a prefix go first.
  for (auto node = group.shared.rbegin(); node != group.shared.rend(); ++node) {
    tree_.release(**node);
  }
  group.shared.clear();
  group.blocks.clear();
  group.computed = 0;
  group.is_stale = false;
}

void KvPlacement::fill_slots(int64_t lane, int64_t position, int32_t block, int64_t offset) {
  int32_t* const slots = lane_slots(lane);
  const int64_t end = std::min(position + block_tokens_ - offset, max_positions_);
  for (int64_t p = position; p < end; ++p) {
    slots[p] = static_cast<int32_t>(block * block_tokens_ + offset + p - position);
  }
}

void KvPlacement::fill_prompt_slots(const Group& group, int64_t lane) {
  int64_t position = 0;
  for (const int32_t block : group.blocks) {
    const int64_t end = std::min(position + block_tokens_, group.prompt_tokens());
    for (int64_t p = position; p < end; ++p) {
      lane_slots(lane)[p] = static_cast<int32_t>(block * block_tokens_ + p - position);
    }
    position = end;
  }
}

void KvPlacement::enter_lane(Sequence& sequence, int64_t lane) {
  Group& group = *sequence.group;
  sequence.lane = lane;
  ++group.num_running;
  fill_prompt_slots(group, lane);
  if (tail_room(group) == 0 || group.tail_owner != nullptr) return;
  group.tail_owner = &sequence;
  fill_slots(lane, group.prompt_tokens(), group.blocks.back(), block_tokens_ - tail_room(group));
  sequence.slots = tail_room(group);
}

bool KvPlacement::grow(Sequence& sequence, int64_t tokens) {
  if (tokens <= sequence.slots) return true;
  const int64_t added = blocks_of(tokens - sequence.slots, block_tokens_);
  if (added > num_available()) return false;
  for (int64_t i = 0; i < added; ++i) {
    const int32_t block = take_block();
    sequence.blocks.push_back(block);
    fill_slots(sequence.lane, sequence.group->prompt_tokens() + sequence.slots, block, 0);
    sequence.slots += block_tokens_;
  }
  return true;
}

int64_t KvPlacement::leave_lane(Sequence& sequence) {
  Group& group = *sequence.group;
  for (const int32_t block : sequence.blocks) pool_.release(block);
  sequence.blocks.clear();
  sequence.slots = 0;
  sequence.computed = 0;
  sequence.is_stale = false;
  --group.num_running;
  if (group.tail_owner == &sequence) group.tail_owner = nullptr;
  return std::exchange(sequence.lane, -1);
}

void KvPlacement::share_response(Sequence& last) {
  Group& group = *last.group;
  const int64_t prompt_tokens = group.prompt_tokens();
  const bool is_aligned = tail_room(group) == 0 || group.tail_owner == &last;
  const int64_t whole = prompt_tokens / block_tokens_;
  if (!is_aligned || group.is_stale || last.is_stale || !group.is_computed() ||
      std::ssize(group.shared) != whole) {
    return;
  }
  std::vector<int32_t> tokens(group.prompt);
  tokens.insert(tokens.end(), last.completion.tokens.begin(),
                last.completion.tokens.begin() + last.computed);
  size_t next_own = 0;  // of the sequence's blocks
  for (int64_t i = whole; (i + 1) * block_tokens_ <= std::ssize(tokens); ++i) {
    const bool is_tail = i * block_tokens_ < prompt_tokens;
    int32_t& block = is_tail ? group.blocks.back() : last.blocks[next_own];
    const auto part = std::span<const int32_t>(tokens).subspan(
        static_cast<size_t>(i * block_tokens_), static_cast<size_t>(block_tokens_));
    PrefixTree::Node* const above = group.shared.empty() ? nullptr : group.shared.back();
    PrefixTree::Node* node = tree_.find(above, part);
    if (node == nullptr) {
      std::vector<uint8_t> routes;
      if (last.request.want_routes && route_bytes_ > 0 && !group.has_old_routes &&
          !last.has_old_routes) {
        routes = slice(group.routes, last.completion.routes.bytes, i * block_tokens_ * route_bytes_,
                       block_tokens_ * route_bytes_);
      }
      node = tree_.insert(above, part, block, std::move(routes));
      if (is_tail) {
        group.blocks.pop_back();
      } else {
        last.blocks.erase(last.blocks.begin() + static_cast<ptrdiff_t>(next_own));
      }
    } else if (!is_tail) {
      ++next_own;  // stays the sequence's, and is given back with it
    }
    // Used until the group stops, like the prompt's: whoever uses a block uses all before it. A
    // block of its own stays behind the shared ones.
    tree_.acquire(*node);
    const auto place = group.blocks.begin() + std::ssize(group.shared);
    group.blocks.insert(place, node->block);
    group.shared.push_back(node);
  }
}

}  // namespace nibble
