#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/serve_bench.h"
#include "core/base/json.h"

namespace nibble {

/// The bodies of a load on /v1/completions. Number n has the same prompt in every run of one seed.
/// Borrows the flags.
class BenchRequests {
 public:
  /// Random prompts are of ids below `vocab`.
  BenchRequests(const ServeBenchFlags& flags, int64_t vocab, std::string model_name);

  std::vector<int32_t> prompt(int64_t number) const;
  /// An answer of exactly so many tokens is asked for, in one piece.
  OrderedJson fields(int64_t number, int64_t tokens, double temperature) const;
  /// The same as a stream that tells at its end how many tokens there were.
  std::string streamed(int64_t number, int64_t tokens, double temperature) const;

 private:
  const ServeBenchFlags& flags_;
  const int64_t vocab_;
  const std::string model_name_;
};

}  // namespace nibble
