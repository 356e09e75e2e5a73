#pragma once

namespace nibble {

/// Sends gRPC's own messages to the logger "grpc" at level debug: what goes wrong reaches callers
/// as a status, so on stderr it would be said twice. Servers and channels call it; any thread, any
/// number of times.
void route_grpc_log();

}  // namespace nibble
