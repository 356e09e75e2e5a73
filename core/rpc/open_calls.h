#pragma once

#include <mutex>
#include <set>

namespace grpc {
class ClientContext;
}

namespace nibble {

/// The calls of a client that are under way, so that another thread can end them. Any thread may
/// call any method.
class OpenCalls {
 public:
  /// One call; made before it and gone before its context. Throws Error{kCancelled} after
  /// cancel().
  class Scope {
   public:
    Scope(OpenCalls& calls, grpc::ClientContext& context);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    OpenCalls& calls_;
    grpc::ClientContext& context_;
  };

  /// Ends all calls, and every later one, with Error{kCancelled}: the client is given up.
  void cancel();

 private:
  std::mutex mutex_;
  bool is_cancelled_ = false;                // guarded by mutex_
  std::set<grpc::ClientContext*> contexts_;  // guarded by mutex_
};

}  // namespace nibble
