#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/data/sample.h"

namespace nibble {

/// Samples that an engine keeps, in the order asked for. Throws Error{kNotFound} naming
/// the prompt. An engine that cannot be reached, or breaks off, is asked again for as long as
/// `timeout`; then Error{kUnavailable}, or Error{kDeadlineExceeded} of one that does not answer.
std::vector<SampleGroup> fetch_samples(const std::string& engine_address,
                                       const std::vector<uint64_t>& prompt_ids,
                                       std::chrono::milliseconds timeout);

}  // namespace nibble
