#include "cli/memory_stream.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/base/clock.h"

namespace nibble {
namespace {

// Caches of hundreds of megabytes exist, and weights that fit one are read from it; models worth
// measuring do not.
constexpr int64_t kWords = int64_t{1} << 27;
constexpr int kPasses = 4;

}  // namespace

double memory_read_gb_per_s(const kernels::Parallel& parallel) {
  std::vector<uint64_t> data(kWords);
  parallel.run(kWords, 1 << 20, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  });
  double best = 0.0;
  std::atomic<uint64_t> sum = 0;  // so that the reads are not left out
  for (int pass = 0; pass < kPasses; ++pass) {
    const Stopwatch watch;
    parallel.run(kWords, 1 << 20, [&](int64_t begin, int64_t end) {
      uint64_t own[8] = {};
      const uint64_t* at = data.data() + begin;
      for (int64_t i = 0; i + 8 <= end - begin; i += 8) {
        for (int j = 0; j < 8; ++j) own[j] ^= at[i + j];
      }
      for (const uint64_t part : own) sum.fetch_xor(part);
    });
    best = std::max(best, static_cast<double>(kWords) * 8 / watch.elapsed_ms() / 1e6);
  }
  return best;
}

}  // namespace nibble
