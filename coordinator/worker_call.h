#pragma once

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include "core/rpc/open_calls.h"
#include "core/rpc/status.h"

// In a client of one worker (member_, stub_). One unary call: METHOD of `stub` with `request` into
// `response`.
#define NIBBLE_CALL(method, timeout, request, response)                           \
  call_rpc(#method, fmt::format("{} ({})", member_.id, member_.address), timeout, \
           [&](grpc::ClientContext& context) {                                    \
             const OpenCalls::Scope open(stub_->calls, context);                  \
             return stub_->stub->method(&context, request, &(response));          \
           })
