#pragma once

/// Marks arithmetic that the CPU and the CUDA compiler share word for word.
#if defined(__CUDACC__)
#define NIBBLE_HOST_DEVICE __host__ __device__
#else
#define NIBBLE_HOST_DEVICE
#endif
