#include "core/rpc/grpc_log.h"

#include <grpc/support/log.h>

#include "core/base/log.h"

namespace nibble {

void route_grpc_log() {
  gpr_set_log_function([](gpr_log_func_args* message) {
    get_logger("grpc")->debug("{}:{}: {}", message->file, message->line, message->message);
  });
}

}  // namespace nibble
