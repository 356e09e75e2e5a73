#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/comm/process_group.h"

namespace nibble {

/// Element-wise sum over ranks of small arrays, in rank order on every rank, so that all ranks hold
/// the same bits. Collective.
void all_reduce_sum(ProcessGroup& group, std::span<double> values);
/// The largest of the ranks' numbers. Collective.
int64_t all_reduce_max(ProcessGroup& group, int64_t mine);

}  // namespace nibble
