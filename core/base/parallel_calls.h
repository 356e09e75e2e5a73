#pragma once

#include <functional>
#include <vector>

namespace nibble {

/// Runs each call on a thread of its own and returns when all have ended; then throws what the
/// first of them (by time) threw. Each call must have a deadline of its own.
void run_parallel(const std::vector<std::function<void()>>& calls);

}  // namespace nibble
