#pragma once

#include <cstdint>
#include <vector>

namespace nibble {

/// Chunks of bytes that travel over shared links.
///
/// The model: a chunk goes over all links of its connection at once, as a fluid. A connection
/// carries one chunk at a time, in the order in which they became ready; a chunk is ready when all
/// chunks it waits for have arrived whole (store and forward). Connections that carry something
/// share links max-min fairly: rates grow together until a link is full, its connections stop
/// growing, the others go on. No latency, no headers, no loss; memory is not a limit.
struct SimNetwork {
  struct Chunk {
    int connection = 0;
    int64_t bytes = 0;
    std::vector<int> after;  ///< chunks that must have arrived
  };
  std::vector<double> link_bytes_per_s;
  std::vector<std::vector<int>> connections;  ///< the links of each
  std::vector<Chunk> chunks;
};

/// Seconds until the last chunk has arrived. Throws Error{kInvalidArgument} if a chunk is empty,
/// names what does not exist, or waits for itself in a circle, if a connection has no link, or if a
/// link has no rate.
double simulate(const SimNetwork& network);

}  // namespace nibble
