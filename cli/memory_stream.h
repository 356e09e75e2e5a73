#pragma once

#include "core/kernels/parallel.h"

namespace nibble {

/// The rate at which this machine's memory can be read right now, by all threads together, in
/// 10^9 bytes a second: the best of a few passes over more than any cache holds.
double memory_read_gb_per_s(const kernels::Parallel& parallel);

}  // namespace nibble
