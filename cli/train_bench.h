#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace CLI {
class App;
}

namespace nibble {

/// What `nibble bench train` is asked for.
struct TrainBenchFlags {
  std::filesystem::path model;
  std::string device = "auto";
  std::string qat = "on";          ///< on, off or both
  std::string recompute = "none";  ///< as trainer.recompute
  std::string state = "fp32";      ///< as optimizer.state
  int64_t group_size = 0;
  std::string targets;
  int64_t tokens = 4096;
  int64_t sequence = 512;
  int64_t max_tokens_per_device = 4096;
  int ranks = 1;
  int tensor = 1;
  int expert = 1;
  int context = 1;
  int rounds = 0;  ///< 0: 5, of both 30
  bool json = false;
};

void add_train_bench_flags(CLI::App& command, TrainBenchFlags& flags);

/// Trains random tokens for some steps, every rank in a process of its own, and prints tokens a
/// second, times of the phases, peak memory as it was allocated and resident, and gathered bytes.
/// With `both`, a step with INT4 weights and one with BF16 in turn, in the same processes, and the
/// ratio of their times. Checks first that losses are finite and that both agree to a few percent.
/// Throws Error naming a flag that is out of range. To be called before this process starts
/// threads.
void run_train_bench(const TrainBenchFlags& flags);

}  // namespace nibble
