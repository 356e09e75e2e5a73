#include "core/base/parallel_calls.h"

#include <exception>
#include <mutex>
#include <thread>

namespace nibble {

void run_parallel(const std::vector<std::function<void()>>& calls) {
  std::mutex mutex;
  std::exception_ptr first;
  {
    std::vector<std::jthread> threads;
    threads.reserve(calls.size());
    for (const auto& call : calls) {
      threads.emplace_back([&] {
        try {
          call();
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (!first) first = std::current_exception();
        }
      });
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace nibble
