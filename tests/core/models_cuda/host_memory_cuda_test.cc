// Page-locked host memory that the GPU works on: what offloaded optimizer state lives in.
#include <gtest/gtest.h>

#include <numeric>

#include "core/base/array.h"
#include "core/kernels/parallel.h"
#include "core/kernels/weight_kernels.h"
#include "core/quant/bf16.h"
#include "tests/core/models_cuda/gpu_backend.h"

namespace nibble {
namespace {

class HostMemoryCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!use_gpu()) GTEST_SKIP() << "no GPU on this machine";
  }
};

std::vector<float> ramp(size_t count, float step) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = step * (static_cast<float>(i % 977) - 400.0f);
  return values;
}

TEST_F(HostMemoryCuda, ArraysTravelBetweenAllKindsOfMemory) {
  const std::vector<float> values = ramp(100003, 0.25f);
  const Array<float> host(values);
  const Array<float> locked = host.to(DeviceKind::kCudaHost);
  const Array<float> back = locked.to(DeviceKind::kCuda).to(DeviceKind::kCudaHost);
  EXPECT_EQ(locked, host) << "the host reads it too";
  EXPECT_EQ(back.to(DeviceKind::kCpu), host);
  EXPECT_EQ(Array<float>(locked), host);
  EXPECT_EQ(Array<float>(5, DeviceKind::kCudaHost), Array<float>(5));
}

TEST_F(HostMemoryCuda, AdamwAndPackingOverTheBusGiveTheCpusBits) {
  const auto backend = ops::make_cuda_backend(Numerics::kExact);
  const kernels::WeightKernels& gpu = backend->weight_kernels();
  const kernels::Serial serial;
  const kernels::CpuWeightKernels cpu(serial);
  const int64_t rows = 37, cols = 256, group = 32, count = rows * cols;
  const auto size = static_cast<size_t>(count);
  const auto update = [&](const kernels::WeightKernels& kernels, DeviceKind state,
                          DeviceKind device, bool is_held) {
    Array<float> master = Array<float>(ramp(size, 1e-4f)).to(state);
    Array<float> m(size, state), v(size, state);
    const Array<float> grad = Array<float>(ramp(size, 1e-3f)).to(device);
    Array<uint32_t> words(size / 8, device);
    Array<uint16_t> scale(size / group, device);
    const kernels::AdamwJob job{master.data(), m.data(), v.data(), grad.data(), count, 0.1f};
    // Too small for the largest masters, which are projected.
    const Array<uint16_t> held =
        Array<uint16_t>(std::vector<uint16_t>(size / group, quant::float_to_bf16(0.005f)))
            .to(state);
    const kernels::PackJob pack{master.data(), {rows, cols, group},
                                words.data(),  scale.data(),
                                nullptr,       is_held ? held.data() : nullptr};
    int64_t projected = 0;
    for (int64_t step = 1; step <= 3; ++step) {
      const kernels::UpdateResult result = kernels.adamw_pack(
          std::span(&job, 1), std::span(&pack, 1), {1e-3f, 0.9f, 0.98f, 1e-8f, 0.0f, step, 0.7f});
      EXPECT_FALSE(result.problem);
      projected += result.projected;
    }
    const kernels::HashJob hash{reinterpret_cast<const uint32_t*>(v.data()), nullptr, count, 0};
    EXPECT_EQ(projected > 0, is_held);
    return std::tuple{projected,
                      master.to(DeviceKind::kCpu),
                      m.to(DeviceKind::kCpu),
                      words.to(DeviceKind::kCpu),
                      scale.to(DeviceKind::kCpu),
                      kernels.hash(std::span(&hash, 1))};
  };
  for (const bool is_held : {false, true}) {
    const auto want = update(cpu, DeviceKind::kCpu, DeviceKind::kCpu, is_held);
    EXPECT_EQ(update(gpu, DeviceKind::kCudaHost, DeviceKind::kCuda, is_held), want);
    EXPECT_EQ(update(gpu, DeviceKind::kCuda, DeviceKind::kCuda, is_held), want);
  }
}

TEST_F(HostMemoryCuda, ALaneCopiesInTheOrderOfWhatIsEnqueuedAroundIt) {
  constexpr size_t kCount = 1 << 22;
  DeviceMemory& gpu = device_memory(DeviceKind::kCuda);
  const auto lane = gpu.make_copy_lane();
  std::vector<float> first(kCount, 1.0f), second(kCount, 2.0f);
  const Array<float> a = Array<float>(first).to(DeviceKind::kCudaHost);
  const Array<float> b = Array<float>(second).to(DeviceKind::kCudaHost);
  Array<float> slot(kCount, DeviceKind::kCuda);
  Array<float> seen = Array<float>::uninitialized(2 * kCount, DeviceKind::kCuda);
  // What was read before the second copy is the first's; what follows join(), the second's.
  lane->copy(slot.data(), a.data(), a.num_bytes());
  lane->join();
  gpu.copy(seen.data(), slot.data(), slot.num_bytes());
  lane->copy(slot.data(), b.data(), b.num_bytes());
  lane->join();
  gpu.copy(seen.data() + kCount, slot.data(), slot.num_bytes());
  const Array<float> result = seen.to(DeviceKind::kCpu);
  EXPECT_TRUE(std::all_of(result.begin(), result.begin() + kCount, [](float x) { return x == 1; }));
  EXPECT_TRUE(std::all_of(result.begin() + kCount, result.end(), [](float x) { return x == 2; }));
}

}  // namespace
}  // namespace nibble
