#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "core/kernels/weight_kernels.h"

namespace nibble::kernels::cuda {

/// WeightKernels on the current CUDA device; one launch for a whole list of tensors. Packed bytes
/// and hashes are the CPU's; AdamW's results too, given the same gradients. Work goes to one
/// stream, which calls wait for. Made for the device that is current then, from any thread.
class CudaWeightKernels final : public WeightKernels {
 public:
  /// On `stream`, borrowed.
  explicit CudaWeightKernels(cudaStream_t stream);
  /// On a stream of its own, which waits for no other.
  CudaWeightKernels();
  ~CudaWeightKernels() override;
  DeviceKind device() const override { return DeviceKind::kCuda; }
  std::optional<PackProblem> pack(std::span<const PackJob> jobs) const override;
  void adamw(std::span<const AdamwJob> jobs, const AdamwParams& params) const override;
  UpdateResult adamw_pack(std::span<const AdamwJob> updates, std::span<const PackJob> packs,
                          const AdamwParams& params) const override;
  void add_parts(float* sum, int64_t count, const float* parts, int64_t stride,
                 int num_parts) const override;
  double sum_of_squares(std::span<const std::span<const float>> arrays) const override;
  std::vector<PackingChanges> count_changes(std::span<const CompareJob> jobs) const override;
  std::vector<quant::ContentHash> hash(std::span<const HashJob> jobs) const override;
  std::vector<uint32_t> count_byte_changes(std::span<const ByteChangeJob> jobs) const override;
  void list_byte_changes(std::span<const ByteChangeJob> jobs, std::span<const uint32_t> counts,
                         std::byte* list) const override;
  [[nodiscard]] bool apply_byte_changes(std::span<const ByteTarget> targets,
                                        std::span<const uint32_t> counts,
                                        const std::byte* list) const override;
  void group_scales(const ScaleJob& job) const override;
  void gptq_block(const GptqBlock& block) const override;

 private:
  class Scratch;
  template <typename Run>
  UpdateResult find_problem(std::span<const PackJob> packs, Run run) const;
  // Masters that projection moves are written where `updates` (one a pack, or none) has them.
  UpdateResult pack_list(std::span<const PackJob> packs, std::span<const AdamwJob> updates) const;
  std::unique_ptr<Scratch> scratch_;  // its lock makes calls of several threads take turns
};

}  // namespace nibble::kernels::cuda
