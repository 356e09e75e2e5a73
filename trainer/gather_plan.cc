#include "trainer/gather_plan.h"

#include <algorithm>
#include <array>
#include <vector>

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr std::array kSharings = {Sharing::kAll, Sharing::kTensor, Sharing::kExpert};

// The parameters of a layer, or of none, that the same ranks own (Bundle).
struct BundleSizes {
  std::vector<int64_t> owner_bytes;  // packed
  int64_t used_elements = 0;         // that are trained, as the next
  int64_t own_elements = 0;
  GatherBytes received;
};

struct UnitSizes {
  std::array<BundleSizes, kSharings.size()> bundles;
  int64_t copied_bytes = 0;  // of what is whole on this rank: from the host
};

void add_parameter(const ShardLayout& layout, int64_t p, UnitSizes& unit) {
  const int64_t used = layout.used(p).rows();
  const Sharing sharing = layout.sharing(p);
  const Owners owners = owners_of(sharing, layout.mesh, layout.rank);
  if (owners.count == 1) {
    unit.copied_bytes += packed_bytes(layout, p, used);
    return;
  }
  BundleSizes& bundle = unit.bundles[static_cast<size_t>(sharing)];
  bundle.owner_bytes.resize(static_cast<size_t>(owners.count));
  for (int place = 0; place < owners.count; ++place) {
    const int64_t rows = row_shard(used, place, owners.count).rows();
    const int64_t bytes = packed_bytes(layout, p, rows);
    bundle.owner_bytes[static_cast<size_t>(place)] += bytes;
    if (place == owners.place) {
      if (!layout.is_frozen(p)) bundle.own_elements += rows * layout.table->at(p).cols;
    } else {
      (layout.quantized(p) ? bundle.received.quantized : bundle.received.plain) += bytes;
    }
  }
  if (!layout.is_frozen(p)) bundle.used_elements += used * layout.table->at(p).cols;
}

// Layers, then what is in none.
std::vector<UnitSizes> units_of(const ShardLayout& layout) {
  std::vector<UnitSizes> units(layout.table->layers.size() + 1);
  for (int64_t p = 0; p < layout.table->size(); ++p) {
    const int64_t layer = layout.table->at(p).layer;
    add_parameter(layout, p, layer < 0 ? units.back() : units[static_cast<size_t>(layer)]);
  }
  return units;
}

int64_t slot_bytes(const UnitSizes& unit, bool with_gradients, ShardHome home) {
  int64_t bytes = home == ShardHome::kHost ? unit.copied_bytes : 0;
  for (const BundleSizes& bundle : unit.bundles) {
    if (bundle.owner_bytes.empty()) continue;
    const auto owners = std::ssize(bundle.owner_bytes);
    bytes += (1 + owners) * *std::max_element(bundle.owner_bytes.begin(), bundle.owner_bytes.end());
    for (const int64_t full : bundle.owner_bytes) bytes += full;
    if (with_gradients) bytes += kFloatBytes * bundle.used_elements;
  }
  return bytes;
}

int64_t reduction_bytes(const BundleSizes& bundle) {
  return kFloatBytes *
         (bundle.used_elements + bundle.own_elements * std::ssize(bundle.owner_bytes));
}

// What GatheredWeights gathers, and when.
class RingWalk {
 public:
  explicit RingWalk(const ShardLayout& layout) {
    for (const UnitSizes& unit : units_of(layout)) {
      GatherBytes& received = received_.emplace_back();
      for (const BundleSizes& bundle : unit.bundles) {
        received.quantized += bundle.received.quantized;
        received.plain += bundle.received.plain;
      }
    }
  }

  GatherBytes pass(bool with_gradients) {
    moved_ = {};
    if (!has_outer_) gather(received_.size() - 1);
    has_outer_ = true;
    const size_t layers = received_.size() - 1;
    for (size_t layer = 0; layer < layers; ++layer) {
      hold(layer);
      if (layer + 1 < layers) hold(layer + 1);
    }
    for (size_t layer = layers; with_gradients && layer-- > 0;) {
      hold(layer);
      if (layer > 0) hold(layer - 1);
    }
    return moved_;
  }

 private:
  void hold(size_t layer) {
    if (slots_[layer % 2] == static_cast<int64_t>(layer)) return;
    slots_[layer % 2] = static_cast<int64_t>(layer);
    gather(layer);
  }
  void gather(size_t unit) {
    moved_.quantized += received_[unit].quantized;
    moved_.plain += received_[unit].plain;
  }

  std::vector<GatherBytes> received_;  // by unit
  std::array<int64_t, 2> slots_ = {-1, -1};
  bool has_outer_ = false;
  GatherBytes moved_;
};

}  // namespace

int64_t ring_bytes(const ShardLayout& layout, bool with_gradients, ShardHome home) {
  const std::vector<UnitSizes> units = units_of(layout);
  std::array<int64_t, 2> slots{};
  for (size_t layer = 0; layer + 1 < units.size(); ++layer) {
    slots[layer % 2] = std::max(slots[layer % 2], slot_bytes(units[layer], with_gradients, home));
  }
  int64_t bytes = slots[0] + slots[1] + slot_bytes(units.back(), with_gradients, home);
  if (!with_gradients) return bytes;
  for (size_t sharing = 0; sharing < kSharings.size(); ++sharing) {
    int64_t most = 0;
    for (const UnitSizes& unit : units) {
      most = std::max(most, reduction_bytes(unit.bundles[sharing]));
    }
    bytes += most;
  }
  return bytes;
}

GatherPlan plan_gathers(const ShardLayout& layout, bool with_gradients) {
  RingWalk walk(layout);
  GatherPlan plan;
  plan.first = walk.pass(with_gradients);
  plan.further = walk.pass(with_gradients);
  return plan;
}

GatherBytes plan_gathers_with_old_pass(const ShardLayout& layout, int64_t updates,
                                       int64_t micro_batches) {
  GatherBytes received;
  const auto add = [&](RingWalk& walk, int64_t passes, bool with_gradients) {
    for (int64_t i = 0; i < passes; ++i) {
      const GatherBytes moved = walk.pass(with_gradients);
      received.quantized += moved.quantized;
      received.plain += moved.plain;
    }
  };
  RingWalk first(layout);
  add(first, updates * micro_batches, false);
  add(first, micro_batches, true);
  for (int64_t u = 1; u < updates; ++u) {
    RingWalk walk(layout);
    add(walk, micro_batches, true);
  }
  return received;
}

}  // namespace nibble
