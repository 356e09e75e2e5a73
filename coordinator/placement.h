#pragma once

namespace nibble {

/// Where trainer ranks and rollout engines live.
enum class Placement {
  kSeparate,   ///< each in a process of its own
  kColocated,  ///< rank i and engine i in one process
};

}  // namespace nibble
