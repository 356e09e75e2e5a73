#pragma once

#include "core/kernels/weight_view.h"

namespace nibble::kernels::cuda {

/// A matrix on the device. With `on_device`, kernels read the pointers from there when they run, so
/// that a captured graph goes on with new weights once that entry is overwritten; shape and format
/// are always `view`'s.
struct DeviceWeight {
  WeightView view;                        ///< device pointers
  const WeightView* on_device = nullptr;  ///< device copy of it, or null
};

}  // namespace nibble::kernels::cuda
