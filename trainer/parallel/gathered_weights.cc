#include "trainer/parallel/gathered_weights.h"

#include <algorithm>
#include <cstring>

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
  std::vector<std::vector<float>> grads;
  std::vector<std::byte> send;
  std::vector<std::byte> staging;
  std::unique_ptr<PendingTransfer> gather;
};

// A layer's gradients on their way to their owners.
class GatheredWeights::Reduction {
 public:
  const Unit* unit = nullptr;
  std::vector<float> send;
  std::vector<float> receive;
  std::unique_ptr<PendingTransfer> transfer;
};

namespace {

// Byte count of `rows` rows of a parameter as stored.
int64_t packed_bytes(const ShardLayout& layout, int64_t parameter, int64_t rows) {
  const int64_t cols = layout.table->at(parameter).cols;
  if (!layout.quantized(parameter)) return rows * cols * 2;
  return rows * (cols / 2 + cols / layout.plan.config.group_size * 2);
}

template <typename T>
const std::byte* append_bytes(const std::vector<T>& values, std::byte* out) {
  std::memcpy(out, values.data(), values.size() * sizeof(T));
  return out + values.size() * sizeof(T);
}

template <typename T>
const std::byte* take_rows(const std::byte* source, std::vector<T>& target, int64_t first_row,
                           int64_t rows, int64_t row_elements) {
  const auto bytes = static_cast<size_t>(rows * row_elements) * sizeof(T);
  std::memcpy(target.data() + first_row * row_elements, source, bytes);
  return source + bytes;
}

}  // namespace

GatheredWeights::GatheredWeights(const ShardLayout& layout, ProcessGroup& group)
    : layout_(layout), group_(group) {
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
  if (layout_.world > 1) {
    for (int i = 0; i < 2; ++i) ring_.push_back(std::make_unique<Slot>());
    outer_ = std::make_unique<Slot>();
    reduction_ = std::make_unique<Reduction>();
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
  slot.send.assign(static_cast<size_t>(unit.max_rank_bytes), std::byte{0});
  std::byte* out = slot.send.data();
  for (const int64_t p : unit.parameters) {
    const StoredParameter& local = shards_->parameters[static_cast<size_t>(p)];
    out = const_cast<std::byte*>(append_bytes(local.words, out));
    out = const_cast<std::byte*>(append_bytes(local.scale, out));
    out = const_cast<std::byte*>(append_bytes(local.bf16, out));
  }
  slot.staging.resize(static_cast<size_t>(unit.max_rank_bytes * layout_.world));
  slot.gather = group_.all_gather(slot.send, slot.staging);
  const double others = static_cast<double>(layout_.world - 1) / layout_.world;
  bytes_.quantized += static_cast<int64_t>(static_cast<double>(unit.quantized_bytes) * others);
  bytes_.plain += static_cast<int64_t>(static_cast<double>(unit.plain_bytes) * others);
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
  if (!slot.gather) return;
  slot.gather->wait();
  slot.gather.reset();
  const Unit& unit = units_[static_cast<size_t>(slot.unit)];
  slot.full.resize(unit.parameters.size());
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    const int64_t p = unit.parameters[i];
    const ParameterSpec& whole = layout_.table->at(p);
    const bool quantized = layout_.quantized(p);
    const int64_t group = layout_.plan.config.group_size;
    slot.full[i].words.resize(quantized ? static_cast<size_t>(whole.num_elements() / 8) : 0);
    slot.full[i].scale.resize(quantized ? static_cast<size_t>(whole.num_elements() / group) : 0);
    slot.full[i].bf16.resize(quantized ? 0 : static_cast<size_t>(whole.num_elements()));
  }
  for (int r = 0; r < layout_.world; ++r) {
    fill_slot(slot, r, slot.staging.data() + r * unit.max_rank_bytes, unit);
  }
}

GatheredWeights::Slot& GatheredWeights::slot_of_layer(int64_t layer) {
  return *ring_[static_cast<size_t>(layer % 2)];
}

void GatheredWeights::begin_pass() {
  NIBBLE_CHECK(shards_ != nullptr, "no weights are set");
  if (layout_.world == 1) return;
  const auto outer_unit = static_cast<int64_t>(units_.size()) - 1;
  if (outer_->unit != outer_unit) start_gather(*outer_, outer_unit);
  if (slot_of_layer(0).unit != 0) start_gather(slot_of_layer(0), 0);
  finish_gather(*outer_);
  if (gradient_shards_.empty()) return;
  outer_->grads.resize(units_.back().parameters.size());
  for (size_t i = 0; i < outer_->grads.size(); ++i) {
    outer_->grads[i].assign(
        static_cast<size_t>(layout_.table->at(units_.back().parameters[i]).num_elements()), 0.0f);
  }
}

void GatheredWeights::enter_layer(int64_t layer, ops::Pass pass) {
  if (layout_.world == 1) return;
  Slot& slot = slot_of_layer(layer);
  if (slot.unit != layer) start_gather(slot, layer);
  finish_gather(slot);
  const int64_t next = pass == ops::Pass::kForward ? layer + 1 : layer - 1;
  const bool has_next = next >= 0 && next < static_cast<int64_t>(layout_.table->layers.size());
  if (has_next && slot_of_layer(next).unit != next) start_gather(slot_of_layer(next), next);
  if (pass == ops::Pass::kBackward && !gradient_shards_.empty()) {
    const Unit& unit = units_[static_cast<size_t>(layer)];
    slot.grads.resize(unit.parameters.size());
    for (size_t i = 0; i < slot.grads.size(); ++i) {
      slot.grads[i].assign(
          static_cast<size_t>(layout_.table->at(unit.parameters[i]).num_elements()), 0.0f);
    }
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
  r.send.clear();
  for (int to = 0; to < layout_.world; ++to) {
    const size_t before = r.send.size();
    for (size_t i = 0; i < unit.parameters.size(); ++i) {
      const RowShard shard = layout_.shard_of(unit.parameters[i], to);
      const int64_t cols = layout_.table->at(unit.parameters[i]).cols;
      const float* rows = slot.grads[i].data();
      r.send.insert(r.send.end(), rows + shard.begin * cols, rows + shard.end * cols);
    }
    send_bytes.push_back(static_cast<int64_t>((r.send.size() - before) * sizeof(float)));
  }
  const int64_t mine = send_bytes[static_cast<size_t>(layout_.rank)];
  const std::vector<int64_t> receive_bytes(static_cast<size_t>(layout_.world), mine);
  r.receive.resize(static_cast<size_t>(mine) / sizeof(float) * static_cast<size_t>(layout_.world));
  r.transfer = group_.all_to_all(std::as_bytes(std::span(r.send)), send_bytes,
                                 std::as_writable_bytes(std::span(r.receive)), receive_bytes);
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
    for (size_t i = 0; i < shard.size(); ++i) {
      float sum = r.receive[offset + i];
      for (int from = 1; from < layout_.world; ++from) {
        sum += r.receive[static_cast<size_t>(from) * part + offset + i];
      }
      shard[i] += sum;
    }
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
  if (layout_.world == 1) {
    return shards_->parameters[static_cast<size_t>(parameter)].view(spec, layout_.plan, quantized);
  }
  const auto [unit, index] = place_[static_cast<size_t>(parameter)];
  const bool outer = unit + 1 == static_cast<int64_t>(units_.size());
  const Slot& slot = outer ? *outer_ : *ring_[static_cast<size_t>(unit % 2)];
  NIBBLE_CHECK(slot.unit == unit && !slot.gather, "'{}' is used outside its layer", spec.module);
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
    gradient_shards_.emplace_back(static_cast<size_t>(layout_.shard_elements(p)), 0.0f);
  }
}

void GatheredWeights::zero_gradients() {
  for (auto& shard : gradient_shards_) std::fill(shard.begin(), shard.end(), 0.0f);
}

GatherBytes GatheredWeights::take_bytes() { return std::exchange(bytes_, GatherBytes{}); }

}  // namespace nibble
