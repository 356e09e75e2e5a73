#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "rollout/engine/request.h"

namespace nibble {

struct Sequence;

/// A prompt and the requests that share it: computed once, its cache slots read by all of them and
/// given back after the last.
struct Group {
  std::vector<int32_t> prompt;
  std::vector<int32_t> slots;      ///< of the prompt; empty until the first member is admitted
  int64_t computed = 0;            ///< prompt tokens in the cache
  int64_t routed = 0;              ///< prompt tokens that were ever computed
  bool want_routes = false;        ///< some member does
  std::vector<uint8_t> routes;     ///< of these, as they were computed first
  std::vector<Sequence*> members;  ///< unfinished; borrowed from the scheduler

  int64_t prompt_tokens() const { return static_cast<int64_t>(prompt.size()); }
  bool is_started() const { return !slots.empty(); }
  bool is_computed() const { return computed == prompt_tokens(); }
};

/// One request on its way. Waiting (lane -1) or running; a waiting one may hold its first token
/// already, because that is drawn for the whole group at once.
struct Sequence {
  GenerateRequest request;       ///< its prompt has moved into the group
  std::shared_ptr<Group> group;  ///< shared: the group lives as long as its last member
  Completion completion;         ///< grows token by token
  int64_t lane = -1;             ///< row of the slot table
  int64_t computed = 0;          ///< response tokens in the cache
  int64_t routed = 0;            ///< response tokens that were ever computed

  int64_t num_tokens() const { return static_cast<int64_t>(completion.tokens.size()); }
  /// Tokens before the last that have to be computed before it.
  int64_t num_behind() const { return std::max<int64_t>(0, num_tokens() - 1 - computed); }
  /// Slots that its response may need; the last token is never computed.
  int64_t response_slots() const { return request.max_new_tokens - 1; }
};

}  // namespace nibble
