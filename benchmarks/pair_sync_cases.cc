#include "benchmarks/pair_sync_cases.h"

#include <algorithm>

namespace nibble {

std::vector<SyncCase> sync_cases(const PairOptions& options) {
  const int n = options.rounds;
  if (options.is_dry_run()) {
    return {{"tiny-dense", 128, {"default", {}}, {1, 8}, {1}, n},
            {"tiny-moe", 32, {"default", {}}, {1}, {1}, n},
            {"tiny-dense", 128, {"min32", {{"NCCL_MIN_P2P_NCHANNELS", "32"}}}, {1}, {}, n}};
  }
  std::vector<SyncCase> cases = {
      {"qwen3-4b", 128, {"default", {}}, {8, 32, 64, 128, 256, 512}, {8, 64, 128, 256}, n},
      {"qwen3-4b", 32, {"default", {}}, {128, 256}, {256}, n},
      {"30b-a3b", 128, {"default", {}}, {32, 128, 256}, {128, 256}, n},
      {"30b-a3b", 32, {"default", {}}, {256}, {256}, n},
  };
  for (const Channels& channels : std::vector<Channels>{
           {"min_p2p=16", {{"NCCL_MIN_P2P_NCHANNELS", "16"}}},
           {"min_p2p=32,max_p2p=32",
            {{"NCCL_MIN_P2P_NCHANNELS", "32"}, {"NCCL_MAX_P2P_NCHANNELS", "32"}}},
           {"max_p2p=4", {{"NCCL_MAX_P2P_NCHANNELS", "4"}}},
           {"per_net_peer=8,net_chunk=512K",
            {{"NCCL_NCHANNELS_PER_NET_PEER", "8"}, {"NCCL_P2P_NET_CHUNKSIZE", "524288"}}}}) {
    cases.push_back({"qwen3-4b", 128, channels, {256}, {}, n});
  }
  return cases;
}

}  // namespace nibble
