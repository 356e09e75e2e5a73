#include "rollout/engine/prefix_tree.h"

#include <utility>

#include "core/base/fail.h"

namespace nibble {

PrefixTree::PrefixTree(BlockPool& pool) : pool_(pool) {}

PrefixTree::~PrefixTree() {
  invalidate();
  while (take_one_apart()) {
  }
}

PrefixTree::Node* PrefixTree::find(const Node* parent, std::span<const int32_t> tokens) const {
  const auto& children = (parent == nullptr ? root_ : *parent).children_;
  const auto found = children.find(std::vector<int32_t>(tokens.begin(), tokens.end()));
  return found == children.end() ? nullptr : found->second.get();
}

PrefixTree::Node* PrefixTree::insert(Node* parent, std::span<const int32_t> tokens, int32_t block,
                                     std::vector<uint8_t> routes) {
  Node& above = parent == nullptr ? root_ : *parent;
  NIBBLE_CHECK(parent == nullptr || above.era_ == era_, "a block after one that is forgotten");
  idle_leaves_.erase({above.last_use_, &above});  // no leaf any more
  auto node = std::make_unique<Node>();
  node->tokens.assign(tokens.begin(), tokens.end());
  node->block = block;
  node->routes = std::move(routes);
  node->parent_ = &above;
  node->last_use_ = ++clock_;
  node->era_ = era_;
  route_bytes_ += std::ssize(node->routes);
  ++num_nodes_;
  ++num_idle_;
  Node& added = *node;
  const bool is_new = above.children_.emplace(added.tokens, std::move(node)).second;
  NIBBLE_CHECK(is_new, "block {} is known already", block);
  add_if_idle_leaf(added);
  return &added;
}

void PrefixTree::set_routes(Node& node, std::vector<uint8_t> routes) {
  route_bytes_ += std::ssize(routes) - std::ssize(node.routes);
  node.routes = std::move(routes);
}

void PrefixTree::acquire(Node& node) {
  if (node.users_++ > 0) return;
  --num_idle_;
  idle_leaves_.erase({node.last_use_, &node});
}

void PrefixTree::release(Node& node) {
  NIBBLE_CHECK(node.users_ > 0, "block {} is in nobody's use", node.block);
  if (--node.users_ > 0) return;
  if (node.is_detached_) {
    free_node(node);
    detached_.erase(&node);
    return;
  }
  ++num_idle_;
  if (node.era_ != era_) return;  // to be taken apart
  node.last_use_ = ++clock_;
  add_if_idle_leaf(node);
}

void PrefixTree::add_if_idle_leaf(Node& node) {
  if (&node == &root_ || node.users_ > 0 || !node.children_.empty()) return;
  idle_leaves_.emplace(node.last_use_, &node);
}

void PrefixTree::free_node(Node& node) {
  pool_.release(node.block);
  route_bytes_ -= std::ssize(node.routes);
}

bool PrefixTree::evict() {
  const int64_t free_before = pool_.num_free();
  while (take_one_apart()) {
    if (pool_.num_free() > free_before) return true;
  }
  if (idle_leaves_.empty()) return false;
  Node& node = *idle_leaves_.begin()->second;
  idle_leaves_.erase(idle_leaves_.begin());
  Node& parent = *node.parent_;
  free_node(node);
  --num_idle_;
  --num_nodes_;
  parent.children_.erase(parent.children_.find(node.tokens));
  add_if_idle_leaf(parent);
  return true;
}

void PrefixTree::invalidate() {
  ++era_;
  if (!root_.children_.empty()) forgotten_.push_back(std::exchange(root_.children_, {}));
  if (!idle_leaves_.empty()) forgotten_leaves_.push_back(std::exchange(idle_leaves_, {}));
  num_nodes_ = 0;
}

void PrefixTree::tidy(int64_t nodes) {
  for (int64_t i = 0; i < nodes && take_one_apart(); ++i) {
  }
}

// One forgotten node, and one entry of a list of leaves. False: there is none.
bool PrefixTree::take_one_apart() {
  if (!forgotten_leaves_.empty()) {
    std::set<LeafKey>& leaves = forgotten_leaves_.back();
    leaves.erase(leaves.begin());
    if (leaves.empty()) forgotten_leaves_.pop_back();
  }
  if (forgotten_.empty()) return !forgotten_leaves_.empty();
  Children& siblings = forgotten_.back();
  std::unique_ptr<Node> node = std::move(siblings.extract(siblings.begin()).mapped());
  if (siblings.empty()) forgotten_.pop_back();
  if (!node->children_.empty()) forgotten_.push_back(std::exchange(node->children_, {}));
  if (node->users_ == 0) {
    free_node(*node);
    --num_idle_;
    return true;
  }
  node->is_detached_ = true;
  node->parent_ = nullptr;
  Node* const key = node.get();
  detached_.emplace(key, std::move(node));
  return true;
}

}  // namespace nibble
