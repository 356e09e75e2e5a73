#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/base/device_memory.h"
#include "core/kernels/adamw.h"
#include "core/kernels/byte_changes.h"
#include "core/kernels/gptq.h"
#include "core/kernels/held_pack.h"
#include "core/kernels/parallel.h"
#include "core/kernels/quantize.h"
#include "core/quant/hash.h"
#include "core/quant/rows.h"

namespace nibble::kernels {

/// One tensor to pack: float32 [rows, cols] -> words and scales (sym7, or those that are held), or
/// BF16 where `words` is null. Sizes as in quantize_pack_int4() and cast_bf16().
struct PackJob {
  const float* master = nullptr;
  quant::GroupShape shape;  ///< group is 0 for BF16
  uint32_t* words = nullptr;
  uint16_t* scale = nullptr;
  uint16_t* bf16 = nullptr;
  /// Null, or scales to pack under as pack_held_int4() does; they are copied to `scale`.
  const uint16_t* held = nullptr;
};
/// The first weight that cannot be packed, of the first job that has one.
struct PackProblem {
  size_t job = 0;
  quant::QuantizeProblem::Kind kind = quant::QuantizeProblem::Kind::kNonFiniteWeight;
  int64_t row = 0;
  int64_t group = 0;  ///< of the row; the column where the job is BF16
};

/// What updating and packing a list of tensors met.
struct UpdateResult {
  std::optional<PackProblem> problem;
  int64_t projected = 0;  ///< masters that left the range of their held scales
};

/// One tensor to update (AdamwParams; weight_decay is the job's).
struct AdamwJob {
  float* master = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  const float* grad = nullptr;
  int64_t count = 0;
  float weight_decay = 0.0f;
  Bf16Moments bf16 = {};  ///< in place of m and v where its m is not null
};

/// Two packings of one tensor to compare.
struct CompareJob {
  const uint32_t* words[2] = {nullptr, nullptr};
  int64_t num_words = 0;
  const uint16_t* values[2] = {nullptr, nullptr};  ///< scales; BF16 of a parameter without words
  int64_t num_values = 0;
};
/// What differs in a job.
struct PackingChanges {
  int64_t codes = 0;   ///< 4-bit codes in the words
  int64_t values = 0;  ///< 16-bit values
  int64_t bytes = 0;   ///< of words and values
};

/// A run of elements of one tensor to hash: 32-bit words, or BF16 values where `words` is null.
struct HashJob {
  const uint32_t* words = nullptr;
  const uint16_t* bf16 = nullptr;
  int64_t count = 0;
  uint64_t first = 0;  ///< position in the tensor of the run's first element
};

/// What is done to weights outside the passes of a model, on the device that holds them. All
/// pointers are that device's. Calls return when their result is there; they follow what the
/// calling thread has enqueued. Any thread may call any method.
class WeightKernels {
 public:
  virtual ~WeightKernels() = default;
  virtual DeviceKind device() const = 0;
  /// Packs all jobs in one pass over each. Masters stay: under held scales, what is outside its
  /// range is packed as if it had been projected.
  virtual std::optional<PackProblem> pack(std::span<const PackJob> jobs) const = 0;
  virtual void adamw(std::span<const AdamwJob> jobs, const AdamwParams& params) const = 0;
  /// adamw() and then pack() of what it left, in one pass over each tensor: packs[i].master is
  /// updates[i].master. Everything is updated, whether or not it can be packed; under held scales
  /// masters are projected too.
  virtual UpdateResult adamw_pack(std::span<const AdamwJob> updates, std::span<const PackJob> packs,
                                  const AdamwParams& params) const = 0;
  /// sum[i] += parts[i] + parts[stride + i] + ..., `num_parts` of them added in that order first.
  virtual void add_parts(float* sum, int64_t count, const float* parts, int64_t stride,
                         int num_parts) const = 0;
  /// In double, in an order that depends on the sizes alone.
  virtual double sum_of_squares(std::span<const std::span<const float>> arrays) const = 0;
  /// One result a job.
  virtual std::vector<PackingChanges> count_changes(std::span<const CompareJob> jobs) const = 0;
  /// quant::hash_words or hash_bf16 of each job.
  virtual std::vector<quant::ContentHash> hash(std::span<const HashJob> jobs) const = 0;
  /// byte_changes.h of each job, one after the other in `counts` and lists.
  virtual std::vector<uint32_t> count_byte_changes(std::span<const ByteChangeJob> jobs) const = 0;
  virtual void list_byte_changes(std::span<const ByteChangeJob> jobs,
                                 std::span<const uint32_t> counts, std::byte* list) const = 0;
  [[nodiscard]] virtual bool apply_byte_changes(std::span<const ByteTarget> targets,
                                                std::span<const uint32_t> counts,
                                                const std::byte* list) const = 0;
  /// gptq.h. These two return at once on a GPU: what the calling thread enqueues follows them.
  virtual void group_scales(const ScaleJob& job) const = 0;
  virtual void gptq_block(const GptqBlock& block) const = 0;
};

/// On the CPU, over `parallel`'s threads (borrowed).
class CpuWeightKernels : public WeightKernels {
 public:
  explicit CpuWeightKernels(const Parallel& parallel) : parallel_(parallel) {}
  DeviceKind device() const override { return DeviceKind::kCpu; }
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
  void group_scales(const ScaleJob& job) const override { kernels::group_scales(job, parallel_); }
  void gptq_block(const GptqBlock& block) const override { kernels::gptq_block(block, parallel_); }

 private:
  const Parallel& parallel_;
};

}  // namespace nibble::kernels
