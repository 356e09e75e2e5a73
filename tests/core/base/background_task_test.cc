#include "core/base/background_task.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <latch>

#include "core/base/fail.h"

namespace nibble {
namespace {

TEST(BackgroundTask, KeepsWhatTheBodyThrewForCheck) {
  std::latch thrown(1);
  BackgroundTask task([&](const std::stop_token&) {
    thrown.count_down();
    fail(ErrorCode::kDataLoss, "lost {}", 7);
  });
  thrown.wait();
  ErrorCode seen = ErrorCode::kInternal;
  // The exception is stored just after the body unwinds; poll with a bound instead of a nap.
  for (int i = 0; i < 1'000'000 && seen != ErrorCode::kDataLoss; ++i) {
    try {
      task.check();
      std::this_thread::yield();
    } catch (const Error& error) {
      seen = error.code();
    }
  }
  EXPECT_EQ(seen, ErrorCode::kDataLoss);
}

TEST(BackgroundTask, IsWaitedForAsLongAsTheDeadlineSays) {
  std::latch may_end(1);
  const BackgroundTask task([&](const std::stop_token&) {
    may_end.wait();
    fail(ErrorCode::kDataLoss, "lost");
  });
  EXPECT_FALSE(task.wait_until(Deadline::after(std::chrono::milliseconds(1))));
  task.check();
  may_end.count_down();
  EXPECT_TRUE(task.wait_until(Deadline::after(std::chrono::seconds(60))));
  EXPECT_THROW(task.check(), Error);
}

TEST(BackgroundTask, DestructorStopsTheBody) {
  std::atomic<bool> stopped = false;
  {
    BackgroundTask task([&](const std::stop_token& stop) {
      std::mutex mutex;
      std::condition_variable_any wake;
      std::unique_lock lock(mutex);
      wake.wait(lock, stop, [] { return false; });
      stopped = true;
    });
  }
  EXPECT_TRUE(stopped);
}

}  // namespace
}  // namespace nibble
