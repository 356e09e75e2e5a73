#include "core/rpc/open_calls.h"

#include <grpcpp/client_context.h>

#include "core/base/fail.h"

namespace nibble {

OpenCalls::Scope::Scope(OpenCalls& calls, grpc::ClientContext& context)
    : calls_(calls), context_(context) {
  const std::lock_guard lock(calls_.mutex_);
  if (calls_.is_cancelled_) fail(ErrorCode::kCancelled, "the peer was given up");
  calls_.contexts_.insert(&context_);
}

OpenCalls::Scope::~Scope() {
  const std::lock_guard lock(calls_.mutex_);
  calls_.contexts_.erase(&context_);
}

void OpenCalls::cancel() {
  const std::lock_guard lock(mutex_);
  is_cancelled_ = true;
  for (grpc::ClientContext* context : contexts_) context->TryCancel();
}

}  // namespace nibble
