#include "benchmarks/small_changes.h"

#include <vector>

#include "core/base/fail.h"

namespace nibble {
namespace {

using kernels::ByteTarget;
using kernels::kChangeBlockBytes;

template <typename Visit>
void for_each_array(const ResidentWeights& weights, Visit visit) {
  for (const StoredParameter& stored : weights.parameters()) {
    for (const auto bytes : {std::as_bytes(std::span(stored.words.data(), stored.words.size())),
                             std::as_bytes(std::span(stored.scale.data(), stored.scale.size())),
                             std::as_bytes(std::span(stored.bf16.data(), stored.bf16.size()))}) {
      if (!bytes.empty()) visit(bytes);
    }
  }
}

}  // namespace

void change_every(const kernels::WeightKernels& kernels, ResidentWeights& weights, int64_t stride,
                  int64_t first) {
  std::vector<ByteTarget> targets;
  std::vector<uint32_t> counts;
  std::vector<std::byte> list;
  for_each_array(weights, [&](std::span<const std::byte> bytes) {
    // The weights' own memory, which is ours to write.
    targets.push_back({const_cast<std::byte*>(bytes.data()), std::ssize(bytes)});
    int64_t place = first;
    for (int64_t block = 0; block < kernels::num_change_blocks(std::ssize(bytes)); ++block) {
      const int64_t end = std::min((block + 1) * kChangeBlockBytes, std::ssize(bytes));
      counts.push_back(0);
      for (; place < end; place += stride, ++counts.back()) {
        const int64_t in_block = place - block * kChangeBlockBytes;
        list.push_back(static_cast<std::byte>(in_block));
        list.push_back(static_cast<std::byte>(in_block >> 8));
        list.push_back(std::byte{1});
      }
    }
  });
  const Array<std::byte> on_device(std::span<const std::byte>(list), weights.device());
  if (!kernels.apply_byte_changes(targets, counts, on_device.data())) {
    fail(ErrorCode::kInternal, "a change lies outside its block");
  }
}

void copy_weights(const ResidentWeights& from, ResidentWeights& to) {
  std::vector<MemoryCopy> copies;
  for_each_array(from, [&](std::span<const std::byte> bytes) {
    copies.push_back({nullptr, bytes.data(), std::ssize(bytes)});
  });
  size_t i = 0;
  for_each_array(to, [&](std::span<const std::byte> bytes) {
    copies[i++].to = const_cast<std::byte*>(bytes.data());
  });
  DeviceMemory& memory = device_memory(to.device());
  memory.copy_all(copies);
  memory.finish();
}

}  // namespace nibble
