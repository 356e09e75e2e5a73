#include "core/base/task_thread.h"

#include <gtest/gtest.h>

#include <future>
#include <string>
#include <thread>

namespace nibble {
namespace {

using namespace std::chrono_literals;

TEST(TaskThread, LetsShortTasksIntoALongOneAndKeepsOthersWaiting) {
  TaskThread thread;
  std::string order;  // belongs to the thread
  std::promise<void> started;
  auto lengthy = std::async(std::launch::async, [&] {
    thread.run([&] {
      started.set_value();
      thread.wait_and_let_in(Deadline::after(30s));
      order += "long ";
    });
  });
  started.get_future().wait();
  auto later = std::async(std::launch::async, [&] { thread.run([&] { order += "later "; }); });
  auto brief = std::async(std::launch::async, [&] {
    const auto on = thread.run_within([&] {
      order += "short ";
      return std::this_thread::get_id();
    });
    EXPECT_EQ(on, thread.run([] { return std::this_thread::get_id(); }));
  });
  for (auto* call : {&lengthy, &later, &brief}) call->get();
  EXPECT_EQ(thread.run([&] { return order; }), "short long later ");
}

TEST(TaskThread, WaitsForAShortTaskUntilTheDeadline) {
  TaskThread thread;
  int runs = 0;
  thread.run([&] { thread.wait_and_let_in(Deadline::after(1ms)); });
  std::promise<void> started;
  auto waits = std::async(std::launch::async, [&] {
    return thread.run([&] {
      started.set_value();
      thread.wait_and_let_in(Deadline::after(30s));
      return runs;
    });
  });
  started.get_future().wait();
  thread.run_within([&] { ++runs; });
  EXPECT_EQ(waits.get(), 1);
}

TEST(TaskThread, GivesWhatATaskThrowsToItsCaller) {
  TaskThread thread;
  EXPECT_THROW(thread.run([] { throw std::runtime_error("no"); }), std::runtime_error);
  EXPECT_THROW(thread.run_within([] { throw std::runtime_error("no"); }), std::runtime_error);
  EXPECT_EQ(thread.run([] { return 3; }), 3);
}

}  // namespace
}  // namespace nibble
