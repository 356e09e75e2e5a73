#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/cuda/device_buffer.h"
#include "core/kernels/parallel.h"
#include "core/quant/bf16.h"
#include "tests/core/kernels/random_data.h"

namespace nibble::kernels {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Skips where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
  const Serial serial;  // for the CPU's side
};

template <typename T>
DeviceBuffer<T> on_device(const std::vector<T>& values) {
  DeviceBuffer<T> buffer(static_cast<int64_t>(values.size()));
  buffer.upload(values.data());
  return buffer;
}

/// A buffer full of 0xff bytes (NaN in BF16 and float32): what is not written stands out.
template <typename T>
DeviceBuffer<T> poisoned(int64_t count) {
  DeviceBuffer<T> buffer(count);
  NIBBLE_CUDA_CHECK(cudaMemset(buffer.data(), 0xff, static_cast<size_t>(count) * sizeof(T)));
  return buffer;
}

template <typename T>
std::vector<T> on_host(const DeviceBuffer<T>& buffer) {
  std::vector<T> values(static_cast<size_t>(buffer.count()));
  buffer.download(values.data());
  return values;
}

inline std::vector<float> widened(const std::vector<uint16_t>& bits) {
  std::vector<float> values;
  for (const uint16_t b : bits) values.push_back(quant::bf16_to_float(b));
  return values;
}

/// |a - b| / |b| over all elements; NaN if any is.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return NAN;
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

/// Rounding each value once to BF16 leaves an error of about 2^-9 / sqrt(3) in this norm.
constexpr double kOneRounding = 2.5e-3;

}  // namespace nibble::kernels
