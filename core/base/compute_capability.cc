#include "core/base/compute_capability.h"

#include "core/base/fail.h"

namespace nibble {

void check_compute_capability(int index, std::string_view name, int major, int minor) {
  constexpr int kOldestMajor = 8;
  if (major >= kOldestMajor) return;
  fail(ErrorCode::kFailedPrecondition,
       "GPU {} ('{}') has compute capability {}.{}; Nibble needs {}.0 or newer: use such a GPU, or "
       "the CPU (a job: cluster.device: cpu; a command: --device cpu)",
       index, name, major, minor, kOldestMajor);
}

}  // namespace nibble
