#pragma once

#include <sys/mman.h>

#include <chrono>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "core/base/fail.h"

namespace nibble {

/// A T that a process shares with the children it forks from then on. T is made of numbers and
/// lock-free atomics. Never unmapped.
template <typename T>
class Shared {
 public:
  Shared() {
    void* const memory =
        mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail(ErrorCode::kResourceExhausted, "no shared memory");
    value_ = new (memory) T();
  }
  T& operator*() const { return *value_; }
  T* operator->() const { return value_; }

 private:
  T* value_;
};

struct ChildProcess {
  std::string name;
  std::function<void()> body;
  bool is_lost = false;  ///< it is to be killed or stopped on the way, and must not end by itself
};

/// Runs the bodies in processes of their own, side by side, and returns whether all ended well;
/// says on stderr which did not, and how. Past `limit`, or a while after the first failure, those
/// that are left are named and killed; lost ones are killed when the others have ended. Fork before
/// any thread starts: CUDA must not have started here.
bool run_processes(const std::vector<ChildProcess>& children, std::chrono::seconds limit);

/// run_processes of one body for two ranks, named after them.
bool run_two_ranks(const std::string& name, const std::function<void(int rank)>& body,
                   std::chrono::seconds limit);

}  // namespace nibble
