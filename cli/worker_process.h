#pragma once

#include <string>

namespace nibble {

/// Path of the running binary: workers and the reward process are copies of it.
std::string own_binary();

/// Joins a job at `coordinator` (host:port), serves the role it is given and returns when the job
/// is over. Throws Error{kUnavailable} when the coordinator is gone.
void run_worker(const std::string& coordinator);

}  // namespace nibble
