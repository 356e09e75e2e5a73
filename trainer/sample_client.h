#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/data/sample.h"

namespace nibble {

/// Samples that an engine keeps, in the order asked for. Throws Error{kNotFound} naming
/// the prompt, Error{kUnavailable} if the engine is gone, Error{kDeadlineExceeded} after `timeout`.
std::vector<SampleGroup> fetch_samples(const std::string& engine_address,
                                       const std::vector<uint64_t>& prompt_ids,
                                       std::chrono::milliseconds timeout);

}  // namespace nibble
