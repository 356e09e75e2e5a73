#pragma once

#include <cstdint>
#include <string>

#include "cli/serve_stack.h"

namespace CLI {
class App;
}

namespace nibble {

/// What `nibble bench serve` is asked for.
struct ServeBenchFlags {
  ServeFlags server;
  std::string url;  ///< of a server that runs already; empty: one is started in this process
  int64_t concurrency = 64;
  int64_t requests = 256;
  int64_t prompt_tokens = 64;
  int64_t new_tokens = 64;  ///< median
  int64_t max_new_tokens = 512;
  double length_sigma = 1.0;
  double temperature = 1.0;
  int64_t seed = 1;
  bool json = false;
};

void add_serve_bench_flags(CLI::App& command, ServeBenchFlags& flags);

/// Sends streaming completions to an HTTP server from many connections and prints tokens a second,
/// times and memory. Checks first that a greedy answer is the engine's, and of every answer that it
/// has as many tokens as were asked for. Throws Error naming a flag that is out of range;
/// Error{kFailedPrecondition}, after the figures, if requests failed.
void run_serve_bench(ServeBenchFlags flags);

}  // namespace nibble
