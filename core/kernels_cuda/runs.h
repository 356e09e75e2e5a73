#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace nibble::kernels::cuda {

/// Places of an index, grouped by its value: value v occurs at places[begin[v]], ...,
/// places[begin[v + 1] - 1], in rising order. Device arrays.
struct Runs {
  const int64_t* places = nullptr;
  const int32_t* begin = nullptr;  ///< [num_values + 1]
  int64_t num_values = 0;
};

/// out[v] = sum over the places i of v, in order and in float32, of x[i]: the adjoint of gathering
/// rows, with one order of summation.
///   x    device BF16 bits [places, cols]; cols a multiple of 8
///   out  device [num_values, cols]: BF16 bits, overwritten; or float32, added to, except for the
///        value `skip` (-1: none)
void sum_runs(const uint16_t* x, const Runs& runs, int64_t cols, uint16_t* out,
              cudaStream_t stream);
void add_runs(const uint16_t* x, const Runs& runs, int64_t cols, int64_t skip, float* out,
              cudaStream_t stream);

}  // namespace nibble::kernels::cuda
