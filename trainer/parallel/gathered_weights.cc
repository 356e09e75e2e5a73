#include "trainer/parallel/gathered_weights.h"

#include <array>
#include <map>

#include "core/base/fail.h"
#include "trainer/parallel/bundle.h"

namespace nibble {
namespace {

constexpr size_t kNumSharings = 3;

}  // namespace

struct GatheredWeights::Unit {
  std::vector<int64_t> parameters;
  std::map<Sharing, Bundle> bundles;  // of what has several owners
  std::map<Sharing, Bundle> trained;  // the same less what is frozen: gradients travel
};

struct GatheredWeights::Slot {
  explicit Slot(DeviceKind device)
      : gathers{BundleGather(device), BundleGather(device), BundleGather(device)} {}
  BundleGather& gather(Sharing sharing) { return gathers[static_cast<size_t>(sharing)]; }

  int64_t unit = -1;  // what it holds or is being filled with
  std::vector<StoredParameter> full;
  std::vector<Array<float>> grads;
  std::array<BundleGather, kNumSharings> gathers;
  bool is_filled = false;
};

GatheredWeights::GatheredWeights(const ShardLayout& layout, const MeshGroups& groups,
                                 const kernels::WeightKernels& kernels, ShardHome home)
    : layout_(layout),
      kernels_(kernels),
      lane_(home == ShardHome::kHost ? device_memory(kernels.device()).make_copy_lane() : nullptr) {
  NIBBLE_CHECK(layout.mesh == groups.mesh() && layout.rank == groups.rank(),
               "groups of another mesh");
  const auto num_layers = static_cast<int64_t>(layout_.table->layers.size());
  std::vector<std::map<Sharing, std::pair<std::vector<int64_t>, std::vector<size_t>>>> shared(
      static_cast<size_t>(num_layers + 1));
  units_.resize(static_cast<size_t>(num_layers + 1));
  for (int64_t p = 0; p < layout_.table->size(); ++p) {
    ParameterSpec used = layout_.table->at(p);
    used.rows = layout_.used(p).rows();
    used_.push_back(used);
    const int64_t unit = used.layer >= 0 ? used.layer : num_layers;
    auto& members = units_[static_cast<size_t>(unit)].parameters;
    place_.emplace_back(unit, members.size());
    if (is_shared(p) && used.rows > 0) {
      auto& [parameters, index] = shared[static_cast<size_t>(unit)][layout_.sharing(p)];
      parameters.push_back(p);
      index.push_back(members.size());
    }
    members.push_back(p);
  }
  for (size_t u = 0; u < units_.size(); ++u) {
    for (auto& [sharing, members] : shared[u]) {
      auto& [parameters, index] = members;
      std::vector<int64_t> trained;
      std::vector<size_t> trained_index;
      for (size_t i = 0; i < parameters.size(); ++i) {
        if (layout_.is_frozen(parameters[i])) continue;
        trained.push_back(parameters[i]);
        trained_index.push_back(index[i]);
      }
      ProcessGroup& owners = groups.owners(sharing);
      if (!trained.empty()) {
        units_[u].trained.emplace(
            sharing, make_bundle(layout_, owners, std::move(trained), std::move(trained_index)));
      }
      units_[u].bundles.emplace(
          sharing, make_bundle(layout_, owners, std::move(parameters), std::move(index)));
    }
  }
  for (int i = 0; i < 2; ++i) ring_.push_back(std::make_unique<Slot>(kernels_.device()));
  outer_ = std::make_unique<Slot>(kernels_.device());
  for (size_t i = 0; i < kNumSharings; ++i) {
    reductions_.push_back(std::make_unique<BundleReduction>(kernels_.device()));
  }
}

GatheredWeights::~GatheredWeights() = default;

bool GatheredWeights::is_shared(int64_t parameter) const {
  return owners_of(layout_.sharing(parameter), layout_.mesh, layout_.rank).count > 1;
}

void GatheredWeights::set_shards(std::shared_ptr<const PackedShards> shards) {
  shards_ = std::move(shards);
  for (auto& slot : ring_) slot->unit = -1;
  outer_->unit = -1;
}

void GatheredWeights::start_gather(Slot& slot, int64_t unit_index) {
  const Unit& unit = units_[static_cast<size_t>(unit_index)];
  slot.unit = unit_index;
  slot.is_filled = false;
  for (const auto& [sharing, bundle] : unit.bundles) {
    slot.gather(sharing).start(bundle, *shards_, lane_.get());
    bytes_.quantized += bundle.quantized_bytes;
    bytes_.plain += bundle.plain_bytes;
  }
  if (!lane_) return;
  size_slot(slot, unit);
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const int64_t p = unit.parameters[i];
    if (is_shared(p)) continue;
    const StoredParameter& local = shards_->parameters[static_cast<size_t>(p)];
    StoredParameter& full = slot.full[i];
    const auto upload = [&](const auto& from, auto& to) {
      if (!from.empty()) lane_->copy(to.data(), from.data(), from.num_bytes());
    };
    upload(local.words, full.words);
    upload(local.scale, full.scale);
    upload(local.bf16, full.bf16);
  }
}

void GatheredWeights::finish_gather(Slot& slot) {
  if (std::exchange(slot.is_filled, true)) return;
  const Unit& unit = units_[static_cast<size_t>(slot.unit)];
  if (lane_) {
    lane_->join();
  } else {
    size_slot(slot, unit);
  }
  for (const auto& [sharing, bundle] : unit.bundles) {
    slot.gather(sharing).finish(layout_, bundle, slot.full);
  }
}

void GatheredWeights::size_slot(Slot& slot, const Unit& unit) const {
  // Layers may differ (dense and MoE): memory is kept where the size is.
  const DeviceKind device = kernels_.device();
  while (slot.full.size() < unit.parameters.size()) {
    slot.full.push_back(
        {Array<uint16_t>(device), Array<uint32_t>(device), Array<uint16_t>(device)});
  }
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const int64_t p = unit.parameters[i];
    const int64_t count = is_resident(p) ? 0 : used_[static_cast<size_t>(p)].num_elements();
    const bool quantized = layout_.quantized(p);
    const int64_t group = layout_.plan.config.group_size;
    slot.full[i].words.resize(quantized ? static_cast<size_t>(count / 8) : 0);
    slot.full[i].scale.resize(quantized ? static_cast<size_t>(count / group) : 0);
    slot.full[i].bf16.resize(quantized ? 0 : static_cast<size_t>(count));
  }
}

GatheredWeights::Slot& GatheredWeights::slot_of_unit(int64_t unit) const {
  const bool outer = unit + 1 == std::ssize(units_);
  return outer ? *outer_ : *ring_[static_cast<size_t>(unit % 2)];
}

void GatheredWeights::begin_pass() {
  NIBBLE_CHECK(shards_ != nullptr, "no weights are set");
  const auto outer_unit = std::ssize(units_) - 1;
  if (outer_->unit != outer_unit) start_gather(*outer_, outer_unit);
  if (slot_of_unit(0).unit != 0) start_gather(slot_of_unit(0), 0);
  finish_gather(*outer_);
  if (!gradient_shards_.empty()) zero_slot_gradients(*outer_);
}

void GatheredWeights::enter_layer(int64_t layer, ops::Pass pass) {
  Slot& slot = slot_of_unit(layer);
  if (slot.unit != layer) start_gather(slot, layer);
  finish_gather(slot);
  const int64_t next = pass == ops::Pass::kForward ? layer + 1 : layer - 1;
  const bool has_next = next >= 0 && next < std::ssize(layout_.table->layers);
  if (has_next && slot_of_unit(next).unit != next) start_gather(slot_of_unit(next), next);
  if (pass == ops::Pass::kBackward && !gradient_shards_.empty()) zero_slot_gradients(slot);
}

void GatheredWeights::zero_slot_gradients(Slot& slot) {
  const Unit& unit = units_[static_cast<size_t>(slot.unit)];
  while (slot.grads.size() < unit.parameters.size()) slot.grads.emplace_back(kernels_.device());
  for (size_t i = 0; i < slot.grads.size(); ++i) {
    const bool is_summed = i < unit.parameters.size() && is_shared(unit.parameters[i]) &&
                           !layout_.is_frozen(unit.parameters[i]);
    slot.grads[i].resize(
        is_summed
            ? static_cast<size_t>(used_[static_cast<size_t>(unit.parameters[i])].num_elements())
            : 0);
    slot.grads[i].fill_zero();
  }
}

void GatheredWeights::leave_layer(int64_t layer, ops::Pass pass) {
  if (pass == ops::Pass::kForward || gradient_shards_.empty()) return;
  finish_reduction();
  start_reduction(slot_of_unit(layer));
}

void GatheredWeights::start_reduction(Slot& slot) {
  for (const auto& [sharing, bundle] : units_[static_cast<size_t>(slot.unit)].trained) {
    reductions_[static_cast<size_t>(sharing)]->start(layout_, bundle, slot.grads);
  }
}

void GatheredWeights::finish_reduction() {
  for (auto& reduction : reductions_) reduction->finish(kernels_, gradient_shards_);
}

void GatheredWeights::finish_backward() {
  finish_reduction();
  start_reduction(*outer_);
  finish_reduction();
}

kernels::WeightView GatheredWeights::weight(int64_t parameter) const {
  const auto p = static_cast<size_t>(parameter);
  const bool quantized = layout_.quantized(parameter);
  if (is_resident(parameter)) {
    return shards_->parameters[p].view(used_[p], layout_.plan, quantized);
  }
  const auto [unit, index] = place_[p];
  const Slot& slot = slot_of_unit(unit);
  NIBBLE_CHECK(slot.unit == unit && slot.is_filled, "'{}' is used outside its layer",
               used_[p].module);
  return slot.full[index].view(used_[p], layout_.plan, quantized);
}

float* GatheredWeights::grad(int64_t parameter) {
  const auto p = static_cast<size_t>(parameter);
  if (gradient_shards_.empty() || layout_.is_frozen(parameter)) return nullptr;
  if (!is_shared(parameter)) return gradient_shards_[p].data();
  const auto [unit, index] = place_[p];
  Slot& slot = slot_of_unit(unit);
  NIBBLE_CHECK(slot.unit == unit, "gradient of '{}' outside its layer", used_[p].module);
  return slot.grads[index].data();
}

void GatheredWeights::enable_gradients() {
  gradient_shards_.clear();
  for (int64_t p = 0; p < layout_.table->size(); ++p) {
    gradient_shards_.emplace_back(static_cast<size_t>(layout_.trained_elements(p)),
                                  kernels_.device());
  }
}

void GatheredWeights::zero_gradients() {
  for (auto& shard : gradient_shards_) shard.fill_zero();
}

GatherBytes GatheredWeights::take_bytes() { return std::exchange(bytes_, GatherBytes{}); }

}  // namespace nibble
