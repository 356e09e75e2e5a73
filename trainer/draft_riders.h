#pragma once

#include <vector>

#include "core/kernels/parallel.h"
#include "core/models/weights.h"
#include "core/spec/joint_parameters.h"

namespace nibble {

/// A draft model's parameters as trainer rank `rank` publishes them (FixedParameters), on a device:
/// the first rank all of them, the others none. Bits that are stored as they are served stay; else
/// they are rounded to nearest (sym7). Throws as load_weights_quantized().
std::vector<StoredParameter> load_draft_riders(const DraftPart& draft, int rank, DeviceKind device,
                                               const kernels::Parallel& parallel);

}  // namespace nibble
