#pragma once

#include <string>

namespace nibble {

/// Path of the running binary: workers are copies of it.
std::string own_binary();

/// Joins a job at `coordinator` (host:port), serves the role it is given and returns when the job
/// is over. Throws Error{kUnavailable} when the coordinator is gone.
void run_worker(const std::string& coordinator);

/// The program beside it that scores samples.
std::string reward_binary();

}  // namespace nibble
