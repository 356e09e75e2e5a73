#include "trainer/parallel/gathered_weights.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {

struct GatheredWeights::Unit {
  std::vector<int64_t> parameters;
  std::vector<int64_t> rank_bytes;  // packed bytes of each rank's rows
  int64_t max_rank_bytes = 0;
  int64_t quantized_bytes = 0;  // of all ranks
  int64_t plain_bytes = 0;
};

struct GatheredWeights::Slot {
  int64_t unit = -1;  // what it holds or is being filled with
  std::vector<StoredParameter> full;
  std::vector<Array<float>> grads;
  Array<std::byte> send;
  Array<std::byte> staging;
  std::unique_ptr<PendingTransfer> gather;
  bool uploading = false;  // from the host, straight into `full`
};

// A layer's gradients on their way to their owners.
class GatheredWeights::Reduction {
 public:
  const Unit* unit = nullptr;
  Array<float> send;
  Array<float> receive;
  std::unique_ptr<PendingTransfer> transfer;
};

namespace {

// Byte count of `rows` rows of a parameter as stored.
int64_t packed_bytes(const ShardLayout& layout, int64_t parameter, int64_t rows) {
  const int64_t cols = layout.table->at(parameter).cols;
  if (!layout.quantized(parameter)) return rows * cols * 2;
  return rows * (cols / 2 + cols / layout.plan.config.group_size * 2);
}

// Copies to `out` and moves it on; over `lane` if the values are on the host.
template <typename T>
void append_bytes(const Array<T>& values, CopyLane* lane, std::byte*& out) {
  if (values.empty()) return;
  if (lane != nullptr) {
    lane->copy(out, values.data(), values.num_bytes());
  } else {
    device_memory(values.device()).copy(out, values.data(), values.num_bytes());
  }
  out += values.num_bytes();
}

template <typename T>
const std::byte* take_rows(const std::byte* source, Array<T>& target, int64_t first_row,
                           int64_t rows, int64_t row_elements) {
  const int64_t bytes = rows * row_elements * static_cast<int64_t>(sizeof(T));
  if (bytes == 0) return source;
  device_memory(target.device()).copy(target.data() + first_row * row_elements, source, bytes);
  return source + bytes;
}

std::span<std::byte> bytes_of(Array<std::byte>& bytes) { return {bytes.data(), bytes.size()}; }
std::span<std::byte> bytes_of(Array<float>& values) {
  return std::as_writable_bytes(std::span(values.data(), values.size()));
}

}  // namespace

GatheredWeights::GatheredWeights(const ShardLayout& layout, ProcessGroup& group,
                                 const kernels::WeightKernels& kernels, ShardHome home)
    : layout_(layout),
      group_(group),
      kernels_(kernels),
      lane_(home == ShardHome::kHost ? device_memory(kernels.device()).make_copy_lane() : nullptr) {
  const auto& parameters = layout_.table->parameters;
  const auto num_layers = static_cast<int64_t>(layout_.table->layers.size());
  units_.resize(static_cast<size_t>(num_layers + 1));
  place_.resize(parameters.size());
  for (int64_t p = 0; p < layout_.table->size(); ++p) {
    const int64_t layer = layout_.table->at(p).layer;
    const int64_t unit = layer >= 0 ? layer : num_layers;
    auto& members = units_[static_cast<size_t>(unit)].parameters;
    place_[static_cast<size_t>(p)] = {unit, static_cast<int64_t>(members.size())};
    members.push_back(p);
  }
  for (Unit& unit : units_) {
    unit.rank_bytes.assign(static_cast<size_t>(layout_.world), 0);
    for (const int64_t p : unit.parameters) {
      for (int r = 0; r < layout_.world; ++r) {
        const int64_t bytes = packed_bytes(layout_, p, layout_.shard_of(p, r).rows());
        unit.rank_bytes[static_cast<size_t>(r)] += bytes;
        (layout_.quantized(p) ? unit.quantized_bytes : unit.plain_bytes) += bytes;
      }
    }
    unit.max_rank_bytes = *std::max_element(unit.rank_bytes.begin(), unit.rank_bytes.end());
  }
  if (needs_ring()) {
    for (int i = 0; i < 2; ++i) ring_.push_back(std::make_unique<Slot>());
    outer_ = std::make_unique<Slot>();
    reduction_ = std::make_unique<Reduction>();
    const DeviceKind device = kernels_.device();
    for (Slot* slot : {ring_[0].get(), ring_[1].get(), outer_.get()}) {
      slot->send = Array<std::byte>(device);
      slot->staging = Array<std::byte>(device);
    }
    reduction_->send = Array<float>(device);
    reduction_->receive = Array<float>(device);
  }
}

GatheredWeights::~GatheredWeights() = default;

void GatheredWeights::set_shards(std::shared_ptr<const PackedShards> shards) {
  shards_ = std::move(shards);
  for (auto& slot : ring_) slot->unit = -1;
  if (outer_) outer_->unit = -1;
}

void GatheredWeights::start_gather(Slot& slot, int64_t unit_index) {
  const Unit& unit = units_[static_cast<size_t>(unit_index)];
  slot.unit = unit_index;
  if (layout_.world == 1) {
    start_upload(slot, unit);
    return;
  }
  slot.send.resize(static_cast<size_t>(unit.max_rank_bytes));
  std::byte* out = slot.send.data();
  for (const int64_t p : unit.parameters) {
    const StoredParameter& local = shards_->parameters[static_cast<size_t>(p)];
    append_bytes(local.words, lane_.get(), out);
    append_bytes(local.scale, lane_.get(), out);
    append_bytes(local.bf16, lane_.get(), out);
  }
  if (lane_) lane_->join();
  slot.staging.resize(static_cast<size_t>(unit.max_rank_bytes * layout_.world));
  slot.gather = group_.all_gather(bytes_of(slot.send), bytes_of(slot.staging));
  const double others = static_cast<double>(layout_.world - 1) / layout_.world;
  bytes_.quantized += static_cast<int64_t>(static_cast<double>(unit.quantized_bytes) * others);
  bytes_.plain += static_cast<int64_t>(static_cast<double>(unit.plain_bytes) * others);
}

void GatheredWeights::start_upload(Slot& slot, const Unit& unit) {
  size_slot(slot, unit);
  slot.uploading = true;
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const StoredParameter& local = shards_->parameters[static_cast<size_t>(unit.parameters[i])];
    StoredParameter& full = slot.full[i];
    const auto upload = [&](const auto& from, auto& to) {
      if (!from.empty()) lane_->copy(to.data(), from.data(), from.num_bytes());
    };
    upload(local.words, full.words);
    upload(local.scale, full.scale);
    upload(local.bf16, full.bf16);
  }
}

void GatheredWeights::fill_slot(Slot& slot, int rank, const std::byte* source,
                                const Unit& unit) const {
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const int64_t p = unit.parameters[i];
    const RowShard shard = layout_.shard_of(p, rank);
    const int64_t cols = layout_.table->at(p).cols;
    StoredParameter& full = slot.full[i];
    if (layout_.quantized(p)) {
      source = take_rows(source, full.words, shard.begin, shard.rows(), cols / 8);
      source = take_rows(source, full.scale, shard.begin, shard.rows(),
                         cols / layout_.plan.config.group_size);
    } else {
      source = take_rows(source, full.bf16, shard.begin, shard.rows(), cols);
    }
  }
}

void GatheredWeights::finish_gather(Slot& slot) {
  if (std::exchange(slot.uploading, false)) lane_->join();
  if (!slot.gather) return;
  slot.gather->wait();
  slot.gather.reset();
  const Unit& unit = units_[static_cast<size_t>(slot.unit)];
  size_slot(slot, unit);
  for (int r = 0; r < layout_.world; ++r) {
    fill_slot(slot, r, slot.staging.data() + r * unit.max_rank_bytes, unit);
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
    const int64_t count = layout_.table->at(p).num_elements();
    const bool quantized = layout_.quantized(p);
    const int64_t group = layout_.plan.config.group_size;
    slot.full[i].words.resize(quantized ? static_cast<size_t>(count / 8) : 0);
    slot.full[i].scale.resize(quantized ? static_cast<size_t>(count / group) : 0);
    slot.full[i].bf16.resize(quantized ? 0 : static_cast<size_t>(count));
  }
}

GatheredWeights::Slot& GatheredWeights::slot_of_layer(int64_t layer) {
  return *ring_[static_cast<size_t>(layer % 2)];
}

void GatheredWeights::begin_pass() {
  NIBBLE_CHECK(shards_ != nullptr, "no weights are set");
  if (!needs_ring()) return;
  const auto outer_unit = static_cast<int64_t>(units_.size()) - 1;
  if (outer_->unit != outer_unit) start_gather(*outer_, outer_unit);
  if (slot_of_layer(0).unit != 0) start_gather(slot_of_layer(0), 0);
  finish_gather(*outer_);
  if (gradient_shards_.empty() || layout_.world == 1) return;
  zero_slot_gradients(*outer_);
}

void GatheredWeights::enter_layer(int64_t layer, ops::Pass pass) {
  if (!needs_ring()) return;
  Slot& slot = slot_of_layer(layer);
  if (slot.unit != layer) start_gather(slot, layer);
  finish_gather(slot);
  const int64_t next = pass == ops::Pass::kForward ? layer + 1 : layer - 1;
  const bool has_next = next >= 0 && next < static_cast<int64_t>(layout_.table->layers.size());
  if (has_next && slot_of_layer(next).unit != next) start_gather(slot_of_layer(next), next);
  if (pass == ops::Pass::kBackward && !gradient_shards_.empty() && layout_.world > 1) {
    zero_slot_gradients(slot);
  }
}

void GatheredWeights::zero_slot_gradients(Slot& slot) {
  const Unit& unit = units_[static_cast<size_t>(slot.unit)];
  while (slot.grads.size() < unit.parameters.size()) slot.grads.emplace_back(kernels_.device());
  for (size_t i = 0; i < slot.grads.size(); ++i) {
    const bool used = i < unit.parameters.size();
    slot.grads[i].resize(
        used ? static_cast<size_t>(layout_.table->at(unit.parameters[i]).num_elements()) : 0);
    slot.grads[i].fill_zero();
  }
}

void GatheredWeights::leave_layer(int64_t layer, ops::Pass pass) {
  if (layout_.world == 1 || pass == ops::Pass::kForward || gradient_shards_.empty()) return;
  finish_reduction();
  start_reduction(slot_of_layer(layer));
}

void GatheredWeights::start_reduction(Slot& slot) {
  const Unit& unit = units_[static_cast<size_t>(slot.unit)];
  Reduction& r = *reduction_;
  r.unit = &unit;
  std::vector<int64_t> send_bytes;
  size_t count = 0;
  for (const auto& grad : slot.grads) count += grad.size();
  r.send.resize(count);
  auto* out = reinterpret_cast<std::byte*>(r.send.data());
  for (int to = 0; to < layout_.world; ++to) {
    const std::byte* const before = out;
    for (size_t i = 0; i < unit.parameters.size(); ++i) {
      const RowShard shard = layout_.shard_of(unit.parameters[i], to);
      const int64_t cols = layout_.table->at(unit.parameters[i]).cols;
      const int64_t bytes = shard.rows() * cols * static_cast<int64_t>(sizeof(float));
      if (bytes == 0) continue;
      device_memory(kernels_.device()).copy(out, slot.grads[i].data() + shard.begin * cols, bytes);
      out += bytes;
    }
    send_bytes.push_back(out - before);
  }
  const int64_t mine = send_bytes[static_cast<size_t>(layout_.rank)];
  const std::vector<int64_t> receive_bytes(static_cast<size_t>(layout_.world), mine);
  r.receive.resize(static_cast<size_t>(mine) / sizeof(float) * static_cast<size_t>(layout_.world));
  r.transfer = group_.all_to_all(bytes_of(r.send), send_bytes, bytes_of(r.receive), receive_bytes);
}

void GatheredWeights::finish_reduction() {
  if (!reduction_ || !reduction_->transfer) return;
  Reduction& r = *reduction_;
  r.transfer->wait();
  r.transfer.reset();
  const size_t part = r.receive.size() / static_cast<size_t>(layout_.world);
  size_t offset = 0;
  for (const int64_t p : r.unit->parameters) {
    auto& shard = gradient_shards_[static_cast<size_t>(p)];
    kernels_.add_parts(shard.data(), static_cast<int64_t>(shard.size()), r.receive.data() + offset,
                       static_cast<int64_t>(part), layout_.world);
    offset += shard.size();
  }
}

void GatheredWeights::finish_backward() {
  if (layout_.world == 1) return;
  finish_reduction();
  start_reduction(*outer_);
  finish_reduction();
}

kernels::WeightView GatheredWeights::weight(int64_t parameter) const {
  const ParameterSpec& spec = layout_.table->at(parameter);
  const bool quantized = layout_.quantized(parameter);
  if (!needs_ring()) {
    return shards_->parameters[static_cast<size_t>(parameter)].view(spec, layout_.plan, quantized);
  }
  const auto [unit, index] = place_[static_cast<size_t>(parameter)];
  const bool outer = unit + 1 == static_cast<int64_t>(units_.size());
  const Slot& slot = outer ? *outer_ : *ring_[static_cast<size_t>(unit % 2)];
  NIBBLE_CHECK(slot.unit == unit && !slot.gather && !slot.uploading,
               "'{}' is used outside its layer", spec.module);
  return slot.full[static_cast<size_t>(index)].view(spec, layout_.plan, quantized);
}

float* GatheredWeights::grad(int64_t parameter) {
  if (gradient_shards_.empty()) return nullptr;
  if (layout_.world == 1) return gradient_shards_[static_cast<size_t>(parameter)].data();
  const auto [unit, index] = place_[static_cast<size_t>(parameter)];
  const bool outer = unit + 1 == static_cast<int64_t>(units_.size());
  Slot& slot = outer ? *outer_ : *ring_[static_cast<size_t>(unit % 2)];
  NIBBLE_CHECK(slot.unit == unit, "gradient of '{}' outside its layer",
               layout_.table->at(parameter).module);
  return slot.grads[static_cast<size_t>(index)].data();
}

void GatheredWeights::enable_gradients() {
  gradient_shards_.clear();
  for (int64_t p = 0; p < layout_.table->size(); ++p) {
    gradient_shards_.emplace_back(static_cast<size_t>(layout_.shard_elements(p)),
                                  kernels_.device());
  }
}

void GatheredWeights::zero_gradients() {
  for (auto& shard : gradient_shards_) shard.fill_zero();
}

GatherBytes GatheredWeights::take_bytes() { return std::exchange(bytes_, GatherBytes{}); }

}  // namespace nibble
