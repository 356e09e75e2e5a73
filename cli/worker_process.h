#pragma once

#include <string>

namespace nibble {

/// Joins a job at `coordinator` (host:port), serves the role it is given and returns when the job
/// is over. Throws Error{kUnavailable} when the coordinator is gone.
void run_worker(const std::string& coordinator);

/// The program beside this one that scores samples.
std::string reward_binary();

}  // namespace nibble
