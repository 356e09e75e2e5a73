#include "core/kernels_cuda/weight_kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/kernels_cuda/launch.h"
#include "core/kernels_cuda/pack_update.h"
#include "core/kernels_cuda/weight_scratch.h"
#include "core/quant/pack.h"

namespace nibble::kernels::cuda {
namespace {

// One block a chunk. Reads master once; bound by HBM bandwidth. `updates` is null, or has the
// masters that projection may write.
__global__ void pack_kernel(const PackJob* __restrict__ jobs, const Chunk* __restrict__ chunks,
                            const AdamwJob* __restrict__ updates, Findings* findings) {
  const Chunk chunk = chunks[blockIdx.x];
  const PackJob job = jobs[chunk.job];
  float* const projected = updates == nullptr ? nullptr : updates[chunk.job].master;
  pack_chunk(job, chunk, Masters{job.master, projected}, findings);
}

__global__ void adamw_kernel(const AdamwJob* __restrict__ jobs, const Chunk* __restrict__ chunks,
                             AdamwFactors f) {
  const Chunk chunk = chunks[blockIdx.x];
  const AdamwJob job = jobs[chunk.job];
  const UpdatedMasters masters(job, f);
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kThreads) {
    masters.one(chunk.begin + i);
  }
}

// One block a chunk; reads and writes everything once.
__global__ void adamw_pack_kernel(const AdamwJob* __restrict__ updates,
                                  const PackJob* __restrict__ packs,
                                  const Chunk* __restrict__ chunks, AdamwFactors f,
                                  Findings* findings) {
  const Chunk chunk = chunks[blockIdx.x];
  const AdamwJob update = updates[chunk.job];
  const PackJob pack = packs[chunk.job];
  pack_chunk(pack, chunk, UpdatedMasters(update, f), findings);
}

__global__ void squares_kernel(const float* const* __restrict__ arrays,
                               const Chunk* __restrict__ chunks, double* __restrict__ sums) {
  __shared__ double scratch[kThreads / kWarp];
  const Chunk chunk = chunks[blockIdx.x];
  const float* x = arrays[chunk.job] + chunk.begin;
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kThreads) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / kWarp; ++w) sum += scratch[w];
  sums[blockIdx.x] = sum;
}

__global__ void add_parts_kernel(float* __restrict__ sum, int64_t count,
                                 const float* __restrict__ parts, int64_t stride, int num_parts) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    float total = parts[i];
    for (int p = 1; p < num_parts; ++p) total += parts[p * stride + i];
    sum[i] += total;
  }
}

// One block a chunk of the longer of a job's arrays and the same places of the other; three
// counters a job.
__global__ void changes_kernel(const CompareJob* __restrict__ jobs,
                               const Chunk* __restrict__ chunks, unsigned long long* counters) {
  const Chunk chunk = chunks[blockIdx.x];
  const CompareJob job = jobs[chunk.job];
  unsigned long long codes = 0, values = 0, bytes = 0;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kThreads) {
    const int64_t at = chunk.begin + i;
    if (at < job.num_words) {
      const uint32_t x = job.words[0][at] ^ job.words[1][at];
      codes += static_cast<unsigned>(__popc(quant::nonzero_codes(x)));
      bytes += static_cast<unsigned>(__popc(quant::nonzero_bytes(x)));
    }
    if (at < job.num_values) {
      const uint32_t x = static_cast<uint32_t>(job.values[0][at] ^ job.values[1][at]);
      values += x != 0 ? 1 : 0;
      bytes += static_cast<unsigned>(__popc(quant::nonzero_bytes(x)));
    }
  }
  unsigned long long* own = counters + int64_t{3} * chunk.job;
  add_count(codes, own);
  add_count(values, own + 1);
  add_count(bytes, own + 2);
}

template <typename Element>
__device__ quant::ContentHash hash_chunk(const Element* __restrict__ values, const Chunk& chunk,
                                         uint64_t first) {
  quant::ContentHash hash;
  for (int i = static_cast<int>(threadIdx.x); i < chunk.count; i += kThreads) {
    const int64_t at = chunk.begin + i;
    hash += quant::hash_element(values[at], first + static_cast<uint64_t>(at));
  }
  return hash;
}

// One block a chunk, two counters a job. Sums mod 2^64: the order of the atomics does not matter.
__global__ void hash_kernel(const HashJob* __restrict__ jobs, const Chunk* __restrict__ chunks,
                            unsigned long long* counters) {
  const Chunk chunk = chunks[blockIdx.x];
  const HashJob job = jobs[chunk.job];
  const quant::ContentHash hash = job.words != nullptr ? hash_chunk(job.words, chunk, job.first)
                                                       : hash_chunk(job.bf16, chunk, job.first);
  add_count(hash.low, counters + 2 * chunk.job);
  add_count(hash.high, counters + 2 * chunk.job + 1);
}

constexpr int64_t kMaxBlocks = 4096;

}  // namespace

CudaWeightKernels::CudaWeightKernels(cudaStream_t stream)
    : scratch_(std::make_unique<Scratch>(stream)) {}
CudaWeightKernels::CudaWeightKernels()
    : scratch_(std::make_unique<Scratch>(std::make_unique<CudaStream>())) {}
CudaWeightKernels::~CudaWeightKernels() = default;

namespace {

std::optional<PackProblem> problem_of(unsigned long long bad, std::span<const PackJob> jobs) {
  if (bad == ~0ull) return std::nullopt;
  using Kind = quant::QuantizeProblem::Kind;
  const auto job = static_cast<size_t>(bad >> kProblemBits);
  const auto place = static_cast<int64_t>((bad & ((1ull << kProblemBits) - 1)) / 2);
  const quant::GroupShape& shape = jobs[job].shape;
  const int64_t width = jobs[job].words != nullptr ? shape.groups_per_row() : shape.cols;
  return PackProblem{job, bad % 2 != 0 ? Kind::kOverflow : Kind::kNonFiniteWeight, place / width,
                     place % width};
}

std::vector<Chunk> cut_updates(std::span<const AdamwJob> jobs) {
  std::vector<int64_t> counts;
  for (const AdamwJob& job : jobs) counts.push_back(job.count);
  return cut(counts);
}

bool is_on_host(const void* data) {
  cudaPointerAttributes attributes{};
  NIBBLE_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
  return attributes.type == cudaMemoryTypeHost;
}

AdamwFactors factors_of(const AdamwParams& p) {
  const double correction1 =
      1.0 - std::pow(static_cast<double>(p.beta1), static_cast<double>(p.step));
  const double correction2 =
      1.0 - std::pow(static_cast<double>(p.beta2), static_cast<double>(p.step));
  return {p.beta1,
          1.0f - p.beta1,
          p.beta2,
          1.0f - p.beta2,
          static_cast<float>(p.lr / correction1),
          static_cast<float>(std::sqrt(correction2)),
          p.eps,
          p.grad_scale,
          p.lr,
          static_cast<uint32_t>(p.step)};
}

}  // namespace

template <typename Run>
UpdateResult CudaWeightKernels::find_problem(std::span<const PackJob> packs, Run run) const {
  Scratch& s = *scratch_;
  s.bind();
  const std::lock_guard lock(s.mutex);
  auto* on_device = static_cast<Findings*>(s.reserve(0, sizeof(Findings)));
  NIBBLE_CUDA_CHECK(
      cudaMemsetAsync(&on_device->first_bad, 0xff, sizeof on_device->first_bad, s.stream));
  NIBBLE_CUDA_CHECK(
      cudaMemsetAsync(&on_device->projected, 0, sizeof on_device->projected, s.stream));
  run(s, s.upload(1, std::vector<PackJob>(packs.begin(), packs.end())), on_device);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
  Findings found{};
  s.download(&found, on_device, sizeof found);
  return {problem_of(found.first_bad, packs), static_cast<int64_t>(found.projected)};
}

UpdateResult CudaWeightKernels::pack_list(std::span<const PackJob> packs,
                                          std::span<const AdamwJob> updates) const {
  std::vector<int64_t> counts;
  for (const PackJob& job : packs) counts.push_back(job.shape.rows * job.shape.cols);
  const std::vector<Chunk> chunks = cut(counts);
  if (chunks.empty()) return {};
  return find_problem(packs, [&](Scratch& s, const PackJob* jobs, Findings* findings) {
    const AdamwJob* masters =
        updates.empty() ? nullptr
                        : s.upload(3, std::vector<AdamwJob>(updates.begin(), updates.end()));
    pack_kernel<<<static_cast<unsigned>(chunks.size()), kThreads, 0, s.stream>>>(
        jobs, s.upload(2, chunks), masters, findings);
  });
}

std::optional<PackProblem> CudaWeightKernels::pack(std::span<const PackJob> jobs) const {
  return pack_list(jobs, {}).problem;
}

void CudaWeightKernels::adamw(std::span<const AdamwJob> jobs, const AdamwParams& params) const {
  const std::vector<Chunk> chunks = cut_updates(jobs);
  if (chunks.empty()) return;
  Scratch& s = *scratch_;
  s.bind();
  const std::lock_guard lock(s.mutex);
  adamw_kernel<<<static_cast<unsigned>(chunks.size()), kThreads, 0, s.stream>>>(
      s.upload(1, std::vector<AdamwJob>(jobs.begin(), jobs.end())), s.upload(2, chunks),
      factors_of(params));
  NIBBLE_CUDA_CHECK(cudaGetLastError());
  NIBBLE_CUDA_CHECK(cudaStreamSynchronize(s.stream));
}

UpdateResult CudaWeightKernels::adamw_pack(std::span<const AdamwJob> updates,
                                           std::span<const PackJob> packs,
                                           const AdamwParams& params) const {
  const std::vector<Chunk> chunks = cut_updates(updates);
  if (chunks.empty()) return {};
  if (is_on_host(updates[0].master)) {
    // Over the bus eight weights a thread make many small writes: two passes are 3.6 x as fast.
    adamw(updates, params);
    return pack_list(packs, updates);
  }
  return find_problem(packs, [&](Scratch& s, const PackJob* jobs, Findings* findings) {
    adamw_pack_kernel<<<static_cast<unsigned>(chunks.size()), kThreads, 0, s.stream>>>(
        s.upload(3, std::vector<AdamwJob>(updates.begin(), updates.end())), jobs,
        s.upload(2, chunks), factors_of(params), findings);
  });
}

void CudaWeightKernels::add_parts(float* sum, int64_t count, const float* parts, int64_t stride,
                                  int num_parts) const {
  if (count == 0) return;
  scratch_->bind();
  const cudaStream_t stream = scratch_->stream;
  add_parts_kernel<<<grid_size(count, kThreads, kMaxBlocks), kThreads, 0, stream>>>(
      sum, count, parts, stride, num_parts);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

double CudaWeightKernels::sum_of_squares(std::span<const std::span<const float>> arrays) const {
  std::vector<int64_t> counts;
  std::vector<const float*> pointers;
  for (const auto& array : arrays) {
    counts.push_back(static_cast<int64_t>(array.size()));
    pointers.push_back(array.data());
  }
  const std::vector<Chunk> chunks = cut(counts);
  if (chunks.empty()) return 0.0;
  std::vector<double> sums(chunks.size());
  Scratch& s = *scratch_;
  s.bind();
  const std::lock_guard lock(s.mutex);
  auto* device_sums = static_cast<double*>(s.reserve(0, sums.size() * sizeof(double)));
  squares_kernel<<<static_cast<unsigned>(chunks.size()), kThreads, 0, s.stream>>>(
      s.upload(1, pointers), s.upload(2, chunks), device_sums);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
  s.download(sums.data(), device_sums, sums.size() * sizeof(double));
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

std::vector<PackingChanges> CudaWeightKernels::count_changes(
    std::span<const CompareJob> jobs) const {
  std::vector<int64_t> counts;
  for (const CompareJob& job : jobs) counts.push_back(std::max(job.num_words, job.num_values));
  const std::vector<Chunk> chunks = cut(counts);
  std::vector<PackingChanges> changes(jobs.size());
  if (chunks.empty()) return changes;
  Scratch& s = *scratch_;
  const auto found = s.count(3 * jobs.size(), [&](unsigned long long* counters) {
    changes_kernel<<<static_cast<unsigned>(chunks.size()), kThreads, 0, s.stream>>>(
        s.upload(1, std::vector<CompareJob>(jobs.begin(), jobs.end())), s.upload(2, chunks),
        counters);
  });
  for (size_t i = 0; i < jobs.size(); ++i) {
    changes[i] = {static_cast<int64_t>(found[3 * i]), static_cast<int64_t>(found[3 * i + 1]),
                  static_cast<int64_t>(found[3 * i + 2])};
  }
  return changes;
}

std::vector<quant::ContentHash> CudaWeightKernels::hash(std::span<const HashJob> jobs) const {
  std::vector<int64_t> counts;
  for (const HashJob& job : jobs) counts.push_back(job.count);
  const std::vector<Chunk> chunks = cut(counts);
  std::vector<quant::ContentHash> hashes(jobs.size());
  if (chunks.empty()) return hashes;
  Scratch& s = *scratch_;
  const auto sums = s.count(2 * jobs.size(), [&](unsigned long long* counters) {
    hash_kernel<<<static_cast<unsigned>(chunks.size()), kThreads, 0, s.stream>>>(
        s.upload(1, std::vector<HashJob>(jobs.begin(), jobs.end())), s.upload(2, chunks), counters);
  });
  for (size_t i = 0; i < jobs.size(); ++i) hashes[i] = {sums[2 * i], sums[2 * i + 1]};
  return hashes;
}

}  // namespace nibble::kernels::cuda
