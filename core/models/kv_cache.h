#pragma once

#include <cstdint>
#include <memory>

#include "core/spec/model_config.h"

namespace nibble {

/// Keys and values of every layer in token slots: float32 [layers, slots, kv_heads * head_dim],
/// allocated once. Which sequence owns which slot is the scheduler's business.
class KvCache {
 public:
  KvCache(const ModelConfig& config, int64_t num_slots);
  float* keys(int64_t layer) { return data_.get() + 2 * layer * layer_floats_; }
  float* values(int64_t layer) { return data_.get() + (2 * layer + 1) * layer_floats_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t slot_floats() const { return slot_floats_; }
  static int64_t bytes_per_slot(const ModelConfig& config);

 private:
  int64_t num_slots_;
  int64_t slot_floats_;
  int64_t layer_floats_;
  std::unique_ptr<float[]> data_;  // uninitialized: a slot is written before it is read
};

}  // namespace nibble
