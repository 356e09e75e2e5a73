// Lists of changed bytes (core/kernels/byte_changes.h) on the GPU, a thread block for each of
// theirs.
#include "core/kernels/byte_changes.h"

#include "core/kernels_cuda/launch.h"
#include "core/kernels_cuda/weight_scratch.h"
#include "core/quant/pack.h"

namespace nibble::kernels::cuda {
namespace {

// A thread block's work: a change block of a job, and where its entries are in the list.
struct ChangeBlock {
  int64_t begin;  // byte of the array
  int64_t first_entry;
  int32_t job;
  int32_t bytes;
  int32_t entries;
};

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLoadsInFlight = 2;  // of a thread, to hide the memory's latency

__device__ int changed_bytes(uint32_t change) { return __popc(quant::nonzero_bytes(change)); }

// What a thread reads at once, and the words in which it looks for changes.
struct Change {
  static constexpr int kMaxWords = 4;
  uint32_t words[kMaxWords];
};
struct Quad {  // of words
  using Memory = uint4;
  static constexpr int kWords = 4;
  static constexpr int kBytes = 4;  // of a word that count
  static __device__ Change change(const uint4& a, const uint4& b) {
    return {{a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w}};
  }
};
struct Half {  // of a word
  using Memory = uint16_t;
  static constexpr int kWords = 1;
  static constexpr int kBytes = 2;
  static __device__ Change change(uint16_t a, uint16_t b) {
    return {{static_cast<uint32_t>(a ^ b), 0, 0, 0}};
  }
};

// Arrays are read by four words where they and the block's size allow it, else by halves of words.
__device__ bool has_quads(const ByteChangeJob& job, const ChangeBlock& block) {
  return ((reinterpret_cast<uintptr_t>(job.base) | reinterpret_cast<uintptr_t>(job.next) |
           static_cast<uintptr_t>(block.bytes)) %
          sizeof(uint4)) == 0;
}

template <typename Unit>
struct Units {
  using Memory = typename Unit::Memory;
  const Memory* base;
  const Memory* next;
  int count;
  __device__ Units(const ByteChangeJob& job, const ChangeBlock& block)
      : base(reinterpret_cast<const Memory*>(job.base + block.begin)),
        next(reinterpret_cast<const Memory*>(job.next + block.begin)),
        count(block.bytes / static_cast<int>(sizeof(Memory))) {}
  __device__ Change change(int i) const { return Unit::change(base[i], next[i]); }
  static __device__ int changed(const Change& change) {
    int count = 0;
    for (int w = 0; w < Unit::kWords; ++w) count += changed_bytes(change.words[w]);
    return count;
  }
};

template <typename Unit>
__device__ int count_own(const Units<Unit> units) {
  int count = 0;
#pragma unroll kLoadsInFlight
  for (int i = static_cast<int>(threadIdx.x); i < units.count; i += kThreads) {
    count += Units<Unit>::changed(units.change(i));
  }
  return count;
}

// Reads both versions once; bound by HBM bandwidth.
__global__ void count_kernel(const ByteChangeJob* __restrict__ jobs,
                             const ChangeBlock* __restrict__ blocks,
                             uint32_t* __restrict__ counts) {
  __shared__ int warp_counts[kWarps];
  const ChangeBlock block = blocks[blockIdx.x];
  const ByteChangeJob job = jobs[block.job];
  int count = has_quads(job, block) ? count_own(Units<Quad>(job, block))
                                    : count_own(Units<Half>(job, block));
  for (int step = kWarp / 2; step > 0; step /= 2) count += __shfl_xor_sync(kAllLanes, count, step);
  if (threadIdx.x % kWarp == 0) warp_counts[threadIdx.x / kWarp] = count;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) count += warp_counts[w];
  counts[blockIdx.x] = static_cast<uint32_t>(count);
}

// In rising places, like the CPU: a running sum over the threads says where each one writes.
template <typename Unit>
__device__ void list_all(const Units<Unit> units, std::byte* out) {
  __shared__ int warp_counts[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int written = 0;
  const auto load = [&units](int i) { return i < units.count ? units.change(i) : Change{}; };
  Change ahead = load(static_cast<int>(threadIdx.x));  // on its way while another is written
  for (int begin = 0; begin < units.count; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const Change change = ahead;
    ahead = load(i + kThreads);
    const int count = Units<Unit>::changed(change);
    if (__syncthreads_or(count) == 0) continue;
    int up_to_here = count;
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, up_to_here, step);
      if (lane >= step) up_to_here += other;
    }
    if (lane == kWarp - 1) warp_counts[warp] = up_to_here;
    __syncthreads();
    int at = written + up_to_here - count;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += warp_counts[w];
      written += warp_counts[w];
    }
    for (int w = 0; w < Unit::kWords; ++w) {
      if (change.words[w] == 0) continue;
      for (int k = 0; k < Unit::kBytes; ++k) {
        const uint32_t byte = change.words[w] >> (8 * k) & 0xffu;
        if (byte == 0) continue;
        const int place = (i * Unit::kWords + w) * Unit::kBytes + k;
        std::byte* entry = out + kChangeEntryBytes * at++;
        entry[0] = static_cast<std::byte>(place & 0xff);
        entry[1] = static_cast<std::byte>(place >> 8);
        entry[2] = static_cast<std::byte>(byte);
      }
    }
  }
}

__global__ void list_kernel(const ByteChangeJob* __restrict__ jobs,
                            const ChangeBlock* __restrict__ blocks, std::byte* __restrict__ list) {
  const ChangeBlock block = blocks[blockIdx.x];
  const ByteChangeJob job = jobs[block.job];
  std::byte* out = list + kChangeEntryBytes * block.first_entry;
  if (has_quads(job, block)) {
    list_all(Units<Quad>(job, block), out);
  } else {
    list_all(Units<Half>(job, block), out);
  }
}

// Several changed bytes share a word, also with a neighbour of the array: XOR of the word, atomic.
__global__ void apply_kernel(const ByteTarget* __restrict__ targets,
                             const ChangeBlock* __restrict__ blocks,
                             const std::byte* __restrict__ list, unsigned* outside) {
  const ChangeBlock block = blocks[blockIdx.x];
  std::byte* data = targets[block.job].data + block.begin;
  const std::byte* entries = list + kChangeEntryBytes * block.first_entry;
  for (int i = static_cast<int>(threadIdx.x); i < block.entries; i += kThreads) {
    const std::byte* entry = entries + kChangeEntryBytes * i;
    const int place = static_cast<int>(entry[0]) | static_cast<int>(entry[1]) << 8;
    if (place >= block.bytes) {
      atomicExch(outside, 1u);
      continue;
    }
    const auto address = reinterpret_cast<uintptr_t>(data + place);
    const auto shift = static_cast<unsigned>(8 * (address % sizeof(uint32_t)));
    atomicXor(reinterpret_cast<unsigned*>(address - address % sizeof(uint32_t)),
              static_cast<unsigned>(entry[2]) << shift);
  }
}

// The blocks of all jobs, in order. With `counts`, those that have entries alone.
template <typename Job>
std::vector<ChangeBlock> change_blocks(std::span<const Job> jobs,
                                       const std::span<const uint32_t>* counts) {
  std::vector<ChangeBlock> blocks;
  int64_t entries = 0;
  size_t i = 0;
  for (size_t job = 0; job < jobs.size(); ++job) {
    for (int64_t begin = 0; begin < jobs[job].bytes; begin += kChangeBlockBytes, ++i) {
      const uint32_t own = counts != nullptr ? (*counts)[i] : 0;
      if (counts == nullptr || own > 0) {
        blocks.push_back(
            {begin, entries, static_cast<int32_t>(job),
             static_cast<int32_t>(std::min(kChangeBlockBytes, jobs[job].bytes - begin)),
             static_cast<int32_t>(own)});
      }
      entries += own;
    }
  }
  return blocks;
}

unsigned grid_of(const std::vector<ChangeBlock>& blocks) {
  return static_cast<unsigned>(blocks.size());
}

}  // namespace

std::vector<uint32_t> CudaWeightKernels::count_byte_changes(
    std::span<const ByteChangeJob> jobs) const {
  const std::vector<ChangeBlock> blocks = change_blocks(jobs, nullptr);
  if (blocks.empty()) return {};
  Scratch& s = *scratch_;
  return s.count<uint32_t>(blocks.size(), [&](uint32_t* counts) {
    count_kernel<<<grid_of(blocks), kThreads, 0, s.stream>>>(
        s.upload(1, std::vector<ByteChangeJob>(jobs.begin(), jobs.end())), s.upload(2, blocks),
        counts);
  });
}

void CudaWeightKernels::list_byte_changes(std::span<const ByteChangeJob> jobs,
                                          std::span<const uint32_t> counts, std::byte* list) const {
  const std::vector<ChangeBlock> blocks = change_blocks(jobs, &counts);
  if (blocks.empty()) return;
  Scratch& s = *scratch_;
  s.bind();
  const std::lock_guard lock(s.mutex);
  list_kernel<<<grid_of(blocks), kThreads, 0, s.stream>>>(
      s.upload(1, std::vector<ByteChangeJob>(jobs.begin(), jobs.end())), s.upload(2, blocks), list);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
  NIBBLE_CUDA_CHECK(cudaStreamSynchronize(s.stream));
}

bool CudaWeightKernels::apply_byte_changes(std::span<const ByteTarget> targets,
                                           std::span<const uint32_t> counts,
                                           const std::byte* list) const {
  const std::vector<ChangeBlock> blocks = change_blocks(targets, &counts);
  if (blocks.empty()) return true;
  Scratch& s = *scratch_;
  const auto outside = s.count<unsigned>(1, [&](unsigned* flag) {
    apply_kernel<<<grid_of(blocks), kThreads, 0, s.stream>>>(
        s.upload(1, std::vector<ByteTarget>(targets.begin(), targets.end())), s.upload(2, blocks),
        list, flag);
  });
  return outside[0] == 0;
}

}  // namespace nibble::kernels::cuda
