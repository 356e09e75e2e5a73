#include "rollout/engine/prefix_tree.h"

#include "core/base/fail.h"

namespace nibble {

PrefixTree::PrefixTree(BlockPool& pool) : pool_(pool) {}

PrefixTree::Node* PrefixTree::find(const Node* parent, std::span<const int32_t> tokens) const {
  const auto& children = (parent == nullptr ? root_ : *parent).children_;
  const auto found = children.find(std::vector<int32_t>(tokens.begin(), tokens.end()));
  return found == children.end() ? nullptr : found->second.get();
}

PrefixTree::Node* PrefixTree::insert(Node* parent, std::span<const int32_t> tokens, int32_t block,
                                     std::vector<uint8_t> routes) {
  Node& above = parent == nullptr ? root_ : *parent;
  NIBBLE_CHECK(!above.is_detached_, "a block after one that is forgotten");
  idle_leaves_.erase({above.last_use_, &above});  // no leaf any more
  auto node = std::make_unique<Node>();
  node->tokens.assign(tokens.begin(), tokens.end());
  node->block = block;
  node->routes = std::move(routes);
  node->parent_ = &above;
  node->last_use_ = ++clock_;
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
  node.last_use_ = ++clock_;
  ++num_idle_;
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
  detach_all(root_);
  idle_leaves_.clear();
  num_idle_ = 0;
  num_nodes_ = 0;
}

void PrefixTree::detach_all(Node& parent) {
  // Trees are as deep as prompts have blocks: no recursion.
  std::vector<std::unique_ptr<Node>> pending;
  const auto take_children = [&pending](Node& node) {
    for (auto& [tokens, child] : node.children_) pending.push_back(std::move(child));
    node.children_.clear();
  };
  take_children(parent);
  while (!pending.empty()) {
    std::unique_ptr<Node> node = std::move(pending.back());
    pending.pop_back();
    take_children(*node);
    if (node->users_ == 0) {
      free_node(*node);
      continue;
    }
    node->is_detached_ = true;
    node->parent_ = nullptr;
    Node* const key = node.get();
    detached_.emplace(key, std::move(node));
  }
}

}  // namespace nibble
