#pragma once

#include <cstdint>

namespace nibble::kernels {

/// A borrowed callable body(begin, end); must outlive the call it is passed to.
class RangeBody {
 public:
  template <typename Body>
  RangeBody(const Body& body)  // NOLINT(google-explicit-constructor): reads like the callable
      : object_(&body), call_([](const void* object, int64_t begin, int64_t end) {
          (*static_cast<const Body*>(object))(begin, end);
        }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int64_t);
};

/// Where a CPU kernel runs: the twin of the stream argument of a CUDA kernel. Threads split
/// outputs, never sums, so results do not depend on the implementation or its thread count.
class Parallel {
 public:
  virtual ~Parallel() = default;
  /// Calls body on disjoint ranges that cover [0, count), each of at least `grain` items except
  /// the last; returns when all are done. What body throws reaches the caller.
  virtual void run(int64_t count, int64_t grain, RangeBody body) const = 0;
};

/// Runs everything on the calling thread.
class Serial final : public Parallel {
 public:
  void run(int64_t count, int64_t /*grain*/, RangeBody body) const override {
    if (count > 0) body(0, count);
  }
};

}  // namespace nibble::kernels
