#include "core/kernels/weight_kernels.h"

#include <algorithm>
#include <numeric>

namespace nibble::kernels {

namespace {

UpdateResult pack_held(const PackJob& job, size_t index, float* projected,
                       const Parallel& parallel) {
  const HeldPacking packing =
      kernels::pack_held_int4({job.master, job.shape, job.held, job.words, projected}, parallel);
  std::copy_n(job.held, job.shape.rows * job.shape.groups_per_row(), job.scale);
  UpdateResult result{std::nullopt, packing.projected};
  if (const auto& problem = packing.problem) {
    result.problem = PackProblem{index, problem->kind, problem->row, problem->group};
  }
  return result;
}

std::optional<PackProblem> pack_one(const PackJob& job, size_t index, const Parallel& parallel) {
  if (job.held != nullptr) return pack_held(job, index, nullptr, parallel).problem;
  if (job.words != nullptr) {
    const auto problem =
        kernels::quantize_pack_int4(job.master, job.shape, job.words, job.scale, parallel);
    if (!problem) return std::nullopt;
    return PackProblem{index, problem->kind, problem->row, problem->group};
  }
  const int64_t bad =
      kernels::cast_bf16(job.master, job.shape.rows * job.shape.cols, job.bf16, parallel);
  if (bad < 0) return std::nullopt;
  return PackProblem{index, quant::QuantizeProblem::Kind::kNonFiniteWeight, bad / job.shape.cols,
                     bad % job.shape.cols};
}

void update_one(const AdamwJob& job, AdamwParams params, const Parallel& parallel) {
  params.weight_decay = job.weight_decay;
  if (job.bf16.m != nullptr) {
    kernels::adamw_bf16(job.master, job.bf16, job.grad, job.count, params, parallel);
    return;
  }
  kernels::adamw(job.master, job.m, job.v, job.grad, job.count, params, parallel);
}

}  // namespace

std::optional<PackProblem> CpuWeightKernels::pack(std::span<const PackJob> jobs) const {
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (const auto problem = pack_one(jobs[i], i, parallel_)) return problem;
  }
  return std::nullopt;
}

void CpuWeightKernels::adamw(std::span<const AdamwJob> jobs, const AdamwParams& params) const {
  for (const AdamwJob& job : jobs) update_one(job, params, parallel_);
}

UpdateResult CpuWeightKernels::adamw_pack(std::span<const AdamwJob> updates,
                                          std::span<const PackJob> packs,
                                          const AdamwParams& params) const {
  UpdateResult all;
  for (size_t i = 0; i < updates.size(); ++i) {
    update_one(updates[i], params, parallel_);
    // Projection is part of the update, which a problem does not end.
    if (packs[i].held != nullptr) {
      const UpdateResult one = pack_held(packs[i], i, updates[i].master, parallel_);
      all.projected += one.projected;
      if (!all.problem) all.problem = one.problem;
    } else if (!all.problem) {
      all.problem = pack_one(packs[i], i, parallel_);
    }
  }
  return all;
}

void CpuWeightKernels::add_parts(float* sum, int64_t count, const float* parts, int64_t stride,
                                 int num_parts) const {
  for (int64_t i = 0; i < count; ++i) {
    float total = parts[i];
    for (int p = 1; p < num_parts; ++p) total += parts[p * stride + i];
    sum[i] += total;
  }
}

double CpuWeightKernels::sum_of_squares(std::span<const std::span<const float>> arrays) const {
  double sum = 0.0;
  for (const auto& array : arrays) {
    sum += kernels::sum_of_squares(array.data(), static_cast<int64_t>(array.size()), parallel_);
  }
  return sum;
}

std::vector<PackingChanges> CpuWeightKernels::count_changes(
    std::span<const CompareJob> jobs) const {
  std::vector<PackingChanges> changes;
  for (const CompareJob& job : jobs) {
    const CodeChanges words =
        kernels::count_int4_changes(job.words[0], job.words[1], job.num_words, parallel_);
    const ValueChanges values =
        kernels::count_value_changes(job.values[0], job.values[1], job.num_values, parallel_);
    changes.push_back({words.codes, values.values, words.bytes + values.bytes});
  }
  return changes;
}

std::vector<quant::ContentHash> CpuWeightKernels::hash(std::span<const HashJob> jobs) const {
  std::vector<quant::ContentHash> hashes;
  for (const HashJob& job : jobs) {
    hashes.push_back(job.words != nullptr
                         ? kernels::hash_words(job.words, job.count, job.first, parallel_)
                         : kernels::hash_bf16(job.bf16, job.count, job.first, parallel_));
  }
  return hashes;
}

std::vector<uint32_t> CpuWeightKernels::count_byte_changes(
    std::span<const ByteChangeJob> jobs) const {
  std::vector<uint32_t> counts;
  for (const ByteChangeJob& job : jobs) {
    const size_t begin = counts.size();
    counts.resize(begin + static_cast<size_t>(num_change_blocks(job.bytes)));
    kernels::count_byte_changes(job, std::span(counts).subspan(begin), parallel_);
  }
  return counts;
}

void CpuWeightKernels::list_byte_changes(std::span<const ByteChangeJob> jobs,
                                         std::span<const uint32_t> counts, std::byte* list) const {
  for (const ByteChangeJob& job : jobs) {
    const auto own = counts.first(static_cast<size_t>(num_change_blocks(job.bytes)));
    counts = counts.subspan(own.size());
    kernels::list_byte_changes(job, own, list, parallel_);
    list += kChangeEntryBytes * std::accumulate(own.begin(), own.end(), int64_t{0});
  }
}

bool CpuWeightKernels::apply_byte_changes(std::span<const ByteTarget> targets,
                                          std::span<const uint32_t> counts,
                                          const std::byte* list) const {
  for (const ByteTarget& target : targets) {
    const auto own = counts.first(static_cast<size_t>(num_change_blocks(target.bytes)));
    counts = counts.subspan(own.size());
    if (!kernels::apply_byte_changes(target, own, list)) return false;
    list += kChangeEntryBytes * std::accumulate(own.begin(), own.end(), int64_t{0});
  }
  return true;
}

}  // namespace nibble::kernels
