#include "trainer/parallel/bundle.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

// Copies between a bundle and its parts, gathered to be made at once.
class PartCopies {
 public:
  template <typename T>
  void take(const Array<T>& values, std::byte*& out) {
    if (values.empty()) return;
    copies_.push_back({out, values.data(), values.num_bytes()});
    out += values.num_bytes();
  }
  template <typename T>
  void give(const std::byte*& source, Array<T>& target, RowShard rows, int64_t row_elements) {
    const int64_t bytes = rows.rows() * row_elements * static_cast<int64_t>(sizeof(T));
    if (bytes == 0) return;
    copies_.push_back({target.data() + rows.begin * row_elements, source, bytes});
    source += bytes;
  }
  void add(void* to, const void* from, int64_t bytes) { copies_.push_back({to, from, bytes}); }
  void run(DeviceKind device) const { device_memory(device).copy_all(copies_); }
  void run(CopyLane& lane) const {
    for (const MemoryCopy& one : copies_) lane.copy(one.to, one.from, one.bytes);
    lane.join();
  }

 private:
  std::vector<MemoryCopy> copies_;
};

std::span<std::byte> bytes_of(Array<std::byte>& bytes) { return {bytes.data(), bytes.size()}; }
std::span<std::byte> bytes_of(Array<float>& values) {
  return std::as_writable_bytes(std::span(values.data(), values.size()));
}

}  // namespace

RowShard Bundle::rows_of(const ShardLayout& layout, size_t i, int owner) const {
  return row_shard(layout.used(parameters[i]).rows(), owner, num_owners());
}

Bundle make_bundle(const ShardLayout& layout, ProcessGroup& group, std::vector<int64_t> parameters,
                   std::vector<size_t> index) {
  Bundle bundle{&group, std::move(parameters), std::move(index), {}, 0, 0, 0};
  for (int owner = 0; owner < group.world(); ++owner) {
    int64_t bytes = 0;
    for (size_t i = 0; i < bundle.parameters.size(); ++i) {
      const int64_t p = bundle.parameters[i];
      const int64_t own = packed_bytes(layout, p, bundle.rows_of(layout, i, owner).rows());
      bytes += own;
      if (owner == group.rank()) continue;
      (layout.quantized(p) ? bundle.quantized_bytes : bundle.plain_bytes) += own;
    }
    bundle.owner_bytes.push_back(bytes);
  }
  bundle.max_owner_bytes = *std::max_element(bundle.owner_bytes.begin(), bundle.owner_bytes.end());
  return bundle;
}

void BundleGather::start(const Bundle& bundle, const PackedShards& shards, CopyLane* lane) {
  send_.resize(static_cast<size_t>(bundle.max_owner_bytes));
  std::byte* out = send_.data();
  PartCopies copies;
  for (const int64_t p : bundle.parameters) {
    const StoredParameter& local = shards.parameters[static_cast<size_t>(p)];
    copies.take(local.words, out);
    copies.take(local.scale, out);
    copies.take(local.bf16, out);
  }
  if (lane != nullptr) {
    copies.run(*lane);
  } else {
    copies.run(send_.device());
  }
  staging_.resize(send_.size() * static_cast<size_t>(bundle.num_owners()));
  transfer_ = bundle.group->all_gather(bytes_of(send_), bytes_of(staging_));
}

void BundleGather::finish(const ShardLayout& layout, const Bundle& bundle,
                          std::vector<StoredParameter>& full) {
  if (!transfer_) return;
  transfer_->join();
  transfer_.reset();
  PartCopies copies;
  for (int owner = 0; owner < bundle.num_owners(); ++owner) {
    const std::byte* source = staging_.data() + owner * bundle.max_owner_bytes;
    for (size_t i = 0; i < bundle.parameters.size(); ++i) {
      const int64_t p = bundle.parameters[i];
      const RowShard rows = bundle.rows_of(layout, i, owner);
      const int64_t cols = layout.table->at(p).cols;
      StoredParameter& to = full[bundle.index[i]];
      if (layout.quantized(p)) {
        copies.give(source, to.words, rows, cols / 8);
        copies.give(source, to.scale, rows, cols / layout.plan.config.group_size);
      } else {
        copies.give(source, to.bf16, rows, cols);
      }
    }
  }
  copies.run(staging_.device());
}

void BundleReduction::start(const ShardLayout& layout, const Bundle& bundle,
                            const std::vector<Array<float>>& grads) {
  bundle_ = &bundle;
  size_t count = 0;
  for (const size_t i : bundle.index) count += grads[i].size();
  send_.resize(count);
  auto* out = reinterpret_cast<std::byte*>(send_.data());
  std::vector<int64_t> send_bytes;
  PartCopies copies;
  for (int owner = 0; owner < bundle.num_owners(); ++owner) {
    const std::byte* const before = out;
    for (size_t i = 0; i < bundle.parameters.size(); ++i) {
      const RowShard rows = bundle.rows_of(layout, i, owner);
      const int64_t cols = layout.table->at(bundle.parameters[i]).cols;
      const int64_t bytes = rows.rows() * cols * static_cast<int64_t>(sizeof(float));
      if (bytes == 0) continue;
      const Array<float>& grad = grads[bundle.index[i]];
      copies.add(out, grad.data() + rows.begin * cols, bytes);
      out += bytes;
    }
    send_bytes.push_back(out - before);
  }
  copies.run(send_.device());
  const auto world = static_cast<size_t>(bundle.num_owners());
  const int64_t mine = send_bytes[static_cast<size_t>(bundle.group->rank())];
  receive_.resize(static_cast<size_t>(mine) / sizeof(float) * world);
  transfer_ = bundle.group->all_to_all(bytes_of(send_), send_bytes, bytes_of(receive_),
                                       std::vector<int64_t>(world, mine));
}

void BundleReduction::finish(const kernels::WeightKernels& kernels,
                             std::vector<Array<float>>& shards) {
  if (!transfer_) return;
  transfer_->join();
  transfer_.reset();
  const size_t part = receive_.size() / static_cast<size_t>(bundle_->num_owners());
  size_t offset = 0;
  for (const int64_t p : bundle_->parameters) {
    auto& shard = shards[static_cast<size_t>(p)];
    kernels.add_parts(shard.data(), static_cast<int64_t>(shard.size()), receive_.data() + offset,
                      static_cast<int64_t>(part), bundle_->num_owners());
    offset += shard.size();
  }
}

}  // namespace nibble
