#pragma once

#include <algorithm>
#include <thread>
#include <vector>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// Splits the range over `threads` short-lived threads, unevenly on purpose: results must not
/// depend on where the cuts are.
class ThreadParallel final : public Parallel {
 public:
  explicit ThreadParallel(int threads) : threads_(threads) {}
  void run(int64_t count, int64_t grain, RangeBody body) const override {
    std::vector<std::thread> workers;
    int64_t begin = 0;
    for (int i = 0; i < threads_ && begin < count; ++i) {
      const int64_t left = threads_ - i;
      const int64_t share = std::max(grain, (count - begin) / left + (i % 2));
      const int64_t end = i + 1 == threads_ ? count : std::min(count, begin + share);
      if (end == count) {
        body(begin, end);  // the caller works too: a thread less to start
      } else {
        workers.emplace_back([=] { body(begin, end); });
      }
      begin = end;
    }
    for (std::thread& worker : workers) worker.join();
  }

 private:
  int threads_;
};

}  // namespace nibble::kernels
