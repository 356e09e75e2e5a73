#include "core/kernels/byte_changes.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "core/quant/pack.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kStepBytes = 4096;  // compared at once: nearly all are equal

uint64_t load_up_to_eight(const std::byte* at, int64_t bytes) {
  uint64_t value = 0;
  std::memcpy(&value, at, static_cast<size_t>(bytes));
  return value;
}

int count_nonzero_bytes(uint64_t x) {
  return std::popcount(quant::nonzero_bytes(static_cast<uint32_t>(x))) +
         std::popcount(quant::nonzero_bytes(static_cast<uint32_t>(x >> 32)));
}

// Calls visit(place, xor of the eight bytes there) where they differ.
template <typename Visit>
void for_each_change(const std::byte* base, const std::byte* next, int64_t bytes, Visit visit) {
  for (int64_t begin = 0; begin < bytes; begin += kStepBytes) {
    const int64_t end = std::min(begin + kStepBytes, bytes);
    if (std::memcmp(base + begin, next + begin, static_cast<size_t>(end - begin)) == 0) continue;
    for (int64_t at = begin; at < end; at += 8) {
      const int64_t width = std::min<int64_t>(8, end - at);
      const uint64_t x = load_up_to_eight(base + at, width) ^ load_up_to_eight(next + at, width);
      if (x != 0) visit(at, x);
    }
  }
}

int64_t block_bytes(int64_t bytes, int64_t block) {
  return std::min(kChangeBlockBytes, bytes - block * kChangeBlockBytes);
}

}  // namespace

void count_byte_changes(const ByteChangeJob& job, std::span<uint32_t> counts,
                        const Parallel& parallel) {
  parallel.run(std::ssize(counts), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kChangeBlockBytes;
      uint32_t count = 0;
      for_each_change(
          job.base + at, job.next + at, block_bytes(job.bytes, block),
          [&](int64_t, uint64_t x) { count += static_cast<uint32_t>(count_nonzero_bytes(x)); });
      counts[static_cast<size_t>(block)] = count;
    }
  });
}

void list_byte_changes(const ByteChangeJob& job, std::span<const uint32_t> counts, std::byte* list,
                       const Parallel& parallel) {
  std::vector<int64_t> first(counts.size());
  int64_t total = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    first[i] = total;
    total += counts[i];
  }
  parallel.run(std::ssize(counts), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      if (counts[static_cast<size_t>(block)] == 0) continue;
      const int64_t at = block * kChangeBlockBytes;
      std::byte* out = list + kChangeEntryBytes * first[static_cast<size_t>(block)];
      for_each_change(job.base + at, job.next + at, block_bytes(job.bytes, block),
                      [&](int64_t place, uint64_t x) {
                        for (; x != 0; x >>= 8, ++place) {
                          if ((x & 0xff) == 0) continue;
                          out[0] = static_cast<std::byte>(place);
                          out[1] = static_cast<std::byte>(place >> 8);
                          out[2] = static_cast<std::byte>(x);
                          out += kChangeEntryBytes;
                        }
                      });
    }
  });
}

bool apply_byte_changes(const ByteTarget& target, std::span<const uint32_t> counts,
                        const std::byte* list) {
  for (size_t i = 0; i < counts.size(); ++i) {
    const auto block = static_cast<int64_t>(i);
    const int64_t bytes = block_bytes(target.bytes, block);
    std::byte* data = target.data + block * kChangeBlockBytes;
    for (uint32_t n = 0; n < counts[i]; ++n, list += kChangeEntryBytes) {
      const auto place = static_cast<int64_t>(list[0]) | static_cast<int64_t>(list[1]) << 8;
      if (place >= bytes) return false;
      data[place] ^= list[2];
    }
  }
  return true;
}

}  // namespace nibble::kernels
