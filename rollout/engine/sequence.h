#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "rollout/engine/prefix_tree.h"
#include "rollout/engine/request.h"

namespace nibble {

struct Sequence;

/// Who goes first. A request that waits gains on later ones of higher priority, so none waits for
/// ever.
struct Order {
  int64_t due = 0;       ///< step of its arrival, earlier by a number of steps for every priority
  uint64_t arrival = 0;  ///< unique
  auto operator<=>(const Order&) const = default;
};

/// A prompt and the requests that share it: computed once, its cache blocks read by all of them and
/// given back after the last.
struct Group {
  std::vector<int32_t> prompt;
  std::vector<int32_t> blocks;            ///< of the prompt; empty: not started
  std::vector<PrefixTree::Node*> shared;  ///< owners of the first of them; the others are its own
  const Sequence* tail_owner = nullptr;   ///< whose response goes on in the last, partial block
  int64_t computed = 0;                   ///< prompt tokens in the cache
  int64_t routed = 0;                     ///< prompt tokens that were ever computed
  int64_t cached = 0;                     ///< prompt tokens that the first start found there
  int64_t num_running = 0;                ///< members that run
  uint64_t planned_in = 0;                ///< the plan that last had tokens of it
  bool is_stale = false;                  ///< other weights than today's computed some of it
  bool want_routes = false;               ///< some member does
  bool has_old_routes = false;            ///< other weights than today's chose some of them
  std::vector<uint8_t> routes;            ///< of `routed` tokens, as they were computed first
  std::vector<Sequence*> members;         ///< unfinished; borrowed from the scheduler

  int64_t prompt_tokens() const { return static_cast<int64_t>(prompt.size()); }
  bool is_started() const { return !blocks.empty(); }
  bool is_computed() const { return computed == prompt_tokens(); }
};

/// One request on its way. Waiting (lane -1) or running; a waiting one may hold tokens already: the
/// first is drawn for the whole group at once, and one that was stopped for want of memory keeps
/// what it has.
struct Sequence {
  GenerateRequest request;       ///< its prompt has moved into the group
  std::shared_ptr<Group> group;  ///< shared: the group lives as long as its last member
  Completion completion;         ///< grows token by token
  Order order;
  int64_t lane = -1;                   ///< row of the slot table
  std::vector<int32_t> blocks;         ///< of its response
  int64_t slots = 0;                   ///< response tokens that have a slot
  int64_t computed = 0;                ///< response tokens in the cache
  int64_t routed = 0;                  ///< response tokens that were ever computed
  bool is_stale = false;               ///< other weights than today's computed some of it
  bool has_old_routes = false;         ///< other weights than today's chose some of its routes
  std::vector<uint8_t> prompt_routes;  ///< of an earlier request; empty: the group's
  std::optional<FinishReason> finished;

  int64_t num_tokens() const { return static_cast<int64_t>(completion.tokens.size()); }
  /// Tokens before the last that have to be computed before it.
  int64_t num_behind() const { return std::max<int64_t>(0, num_tokens() - 1 - computed); }
};

}  // namespace nibble
