#pragma once

// How autograd nodes of core/ops keep things that are not tensors. Included by core/ops/*.cc only.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <string>

#include "core/ops/tape_ops.h"

namespace nibble::ops {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Any C++ value inside an autograd context.
template <typename T>
struct Kept : torch::CustomClassHolder {
  explicit Kept(T v) : value(std::move(v)) {}
  T value;
};

template <typename T>
void keep(AutogradContext* context, const std::string& name, T value) {
  context->saved_data[name] =
      c10::IValue::make_capsule(c10::make_intrusive<Kept<T>>(std::move(value)));
}

template <typename T>
const T& kept(AutogradContext* context, const std::string& name) {
  auto capsule = context->saved_data[name].toCapsule();
  return static_cast<const Kept<T>*>(capsule.get())->value;
}

}  // namespace nibble::ops
