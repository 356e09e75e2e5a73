#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rollout/engine/block_pool.h"

namespace nibble {

/// Remembers which blocks of a KV cache hold the keys and values of which token prefixes, so that
/// a prompt that begins like an earlier one is not computed again. A radix tree: an edge is one
/// block of tokens. Blocks that nobody uses stay until their memory is wanted, the least recently
/// used first. What other weights computed is never found: invalidate() at every swap, which
/// takes no longer for a full tree. One thread.
class PrefixTree {
 public:
  struct Node {
    std::vector<int32_t> tokens;  ///< of this block
    int32_t block = -1;
    std::vector<uint8_t> routes;  ///< of these tokens, as Routes::bytes; empty: not known

   private:
    friend class PrefixTree;
    Node* parent_ = nullptr;
    std::map<std::vector<int32_t>, std::unique_ptr<Node>> children_;
    int64_t users_ = 0;
    uint64_t last_use_ = 0;
    uint64_t era_ = 0;          // of the weights; an earlier one: forgotten
    bool is_detached_ = false;  // forgotten, in use, and out of the tree
  };

  /// `pool` gets back what is forgotten, and outlives the tree.
  explicit PrefixTree(BlockPool& pool);
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;
  ~PrefixTree();

  /// The block after `parent` (null: the first) with these tokens; null if it is not known.
  Node* find(const Node* parent, std::span<const int32_t> tokens) const;
  /// Adds one, which find() does not know; its block is the tree's from now on. Nobody uses it yet.
  Node* insert(Node* parent, std::span<const int32_t> tokens, int32_t block,
               std::vector<uint8_t> routes);
  /// What was computed after all.
  void set_routes(Node& node, std::vector<uint8_t> routes);

  /// Whoever uses a node uses all before it too.
  void acquire(Node& node);
  void release(Node& node);

  bool is_idle(const Node& node) const { return node.users_ == 0; }

  /// Gives one block that nobody uses back to the pool; false if there is none.
  bool evict();
  /// Forgets everything. What nobody uses can be evicted as before; blocks in use can be once they
  /// are released. Memory of the tree itself goes with tidy() and evict().
  void invalidate();
  /// Takes up to so many forgotten nodes apart.
  void tidy(int64_t nodes);

  int64_t num_idle() const { return num_idle_; }     ///< blocks that nobody uses
  int64_t num_blocks() const { return num_nodes_; }  ///< that can be found
  int64_t route_bytes() const { return route_bytes_; }

 private:
  using LeafKey = std::pair<uint64_t, Node*>;
  using Children = std::map<std::vector<int32_t>, std::unique_ptr<Node>>;
  void add_if_idle_leaf(Node& node);
  void free_node(Node& node);
  bool take_one_apart();

  BlockPool& pool_;
  Node root_;
  uint64_t era_ = 0;
  std::set<LeafKey> idle_leaves_;
  // Of earlier eras, to be taken apart. Trees are as deep as prompts have blocks: no recursion.
  std::vector<Children> forgotten_;
  std::vector<std::set<LeafKey>> forgotten_leaves_;
  std::unordered_map<Node*, std::unique_ptr<Node>> detached_;  // in use, of earlier weights
  uint64_t clock_ = 0;
  int64_t num_idle_ = 0;
  int64_t num_nodes_ = 0;
  int64_t route_bytes_ = 0;
};

}  // namespace nibble
