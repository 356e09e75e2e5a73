#include "core/ops/torch_parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace nibble::ops {
namespace {

TEST(TorchParallel, RunsOnAsManyThreadsAsWereSet) {
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    torch_parallel().run(64, 1, [&](int64_t, int64_t) {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    EXPECT_EQ(std::ssize(seen), threads);
  }
}

TEST(TorchParallel, CoversEveryItemOnce) {
  set_num_threads(3);
  for (const int64_t count : {0, 1, 7, 100}) {
    std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
    torch_parallel().run(count, 5, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
    });
    for (const auto& visit : visits) EXPECT_EQ(visit.load(), 1);
  }
}

TEST(TorchParallel, WhatABodyThrowsReachesTheCaller) {
  set_num_threads(3);
  EXPECT_THROW(torch_parallel().run(3, 1,
                                    [](int64_t, int64_t end) {
                                      if (end == 3) throw std::runtime_error("x");
                                    }),
               std::runtime_error);
}

}  // namespace
}  // namespace nibble::ops
