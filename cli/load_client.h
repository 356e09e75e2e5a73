#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/http/http_client.h"

namespace nibble {

/// How one streamed completion went. Times count from when the request was sent.
struct LoadAnswer {
  std::string failure;      ///< not empty: there was no whole answer, and why
  int64_t num_tokens = -1;  ///< by the server's count; -1: not said
  std::string text;         ///< if it was to be kept
  double first_ms = 0;      ///< the first part of the answer came
  double last_ms = 0;       ///< the last one
  double total_ms = 0;      ///< the answer was whole
};

struct LoadOptions {
  int64_t connections = 1;
  std::chrono::milliseconds request_timeout{600'000};
  bool keeps_text = false;
  /// Called about every 50 ms meanwhile; may be empty.
  std::function<void(int64_t num_answered)> on_tick;
};

/// Posts all `bodies`, streaming completions, over so many connections: each sends its next request
/// once its last one is answered. Answers in the order of the bodies. Throws Error{kUnavailable} if
/// the server's name cannot be resolved; what goes wrong later is in the answers.
std::vector<LoadAnswer> run_load(const HttpTarget& target, std::span<const std::string> bodies,
                                 const LoadOptions& options);

}  // namespace nibble
