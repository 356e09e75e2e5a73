#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace nibble::ops {

/// Results that autograd nodes have saved and whose memory is given up until the backward pass:
/// their storage is emptied, and filled again with the same bits. One thread; a value may be used
/// before drop() and after restore().
class DroppedValues {
 public:
  /// Computes a value again. It may read values that were added earlier.
  using Recipe = std::function<at::Tensor()>;

  /// `value` is contiguous and the whole of its storage; views of it are dropped with it.
  void add(const at::Tensor& value, Recipe recipe);
  void drop();
  /// In the order of add(). The values are forgotten: they live as long as the nodes that use them.
  void restore();

 private:
  struct Value {
    c10::Storage storage;
    size_t bytes;
    Recipe recipe;
  };
  std::vector<Value> values_;
};

}  // namespace nibble::ops
