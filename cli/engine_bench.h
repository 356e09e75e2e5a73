#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/draft_flags.h"
#include "cli/model_flags.h"

namespace CLI {
class App;
}

namespace nibble {

/// What `nibble bench decode` and `nibble bench prefill` are asked for.
struct EngineBenchFlags {
  ModelFlags model;
  std::vector<int64_t> batches = {1, 8, 32};
  int64_t prompt_tokens = 64;
  int64_t new_tokens = 128;
  int64_t rounds = 3;
  int64_t max_draft_tokens = 0;
  bool guess_always = false;
  DraftFlags draft;  ///< guesses alone, without look-up; empty: look-up does
  float temperature = 1.0f;
  bool json = false;
};

void add_engine_bench_flags(CLI::App& command, EngineBenchFlags& flags, bool is_decode);

/// Decodes batches of random prompts and prints tokens a second, the rate at which weights were
/// read, and its share of what memory gives. Checks first that a sample is what it is alone.
/// Throws Error naming a flag that is out of range.
void run_decode_bench(const EngineBenchFlags& flags);

/// Computes one prompt at a time and prints tokens a second.
void run_prefill_bench(EngineBenchFlags flags);

}  // namespace nibble
