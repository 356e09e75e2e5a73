#include "weight_sync/hash_batch.h"

#include <algorithm>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int64_t kLeastBatchBytes = int64_t{1} << 20;

// Enough to hash at the rate of a fast link; the rest of the cores has other work.
int64_t max_threads(DeviceKind device) {
  if (device != DeviceKind::kCpu) return 1;
  return std::clamp<int64_t>(std::thread::hardware_concurrency() / 4, 1, 4);
}

}  // namespace

HashBatch::HashBatch(const kernels::WeightKernels& kernels, int64_t batch_bytes)
    : kernels_(kernels), batch_bytes_(std::max(batch_bytes, kLeastBatchBytes)) {}

void HashBatch::add(const StoredTensor& tensor, int64_t first_element,
                    std::span<const std::byte> bytes, quant::ContentHash* sum) {
  const int64_t element_bytes = tensor.element_bytes();
  NIBBLE_CHECK(
      reinterpret_cast<uintptr_t>(bytes.data()) % static_cast<uintptr_t>(element_bytes) == 0,
      "tensor '{}' is not aligned to its elements", tensor.name);
  kernels::HashJob job;
  if (tensor.kind == StoredKind::kWords) {
    job.words = reinterpret_cast<const uint32_t*>(bytes.data());
  } else {
    job.bf16 = reinterpret_cast<const uint16_t*>(bytes.data());
  }
  job.count = std::ssize(bytes) / element_bytes;
  job.first = static_cast<uint64_t>(first_element);
  gathered_.jobs.push_back(job);
  gathered_.sums.push_back(sum);
  ++num_added_;
  gathered_bytes_ += std::ssize(bytes);
  if (gathered_bytes_ >= batch_bytes_) hand_over();
}

void HashBatch::add(const Manifest& manifest, const PlannedSlice& planned, const Segment& segment,
                    std::span<const std::byte> piece, quant::ContentHash* sum) {
  const StoredTensor& tensor = manifest.at(planned.slice.tensor);
  const int64_t first = (planned.byte_begin + segment.offset) / tensor.element_bytes();
  add(tensor, first,
      piece.subspan(static_cast<size_t>(segment.offset), static_cast<size_t>(segment.bytes)), sum);
}

void HashBatch::queue_gathered() {
  if (gathered_.jobs.empty()) return;
  open_.insert(gathered_.first);
  waiting_.push_back(std::exchange(gathered_, {{}, {}, num_added_}));
  gathered_bytes_ = 0;
}

void HashBatch::hand_over() {
  const std::lock_guard lock(mutex_);
  queue_gathered();
  // Few models are so small that no thread is ever wanted; tests are full of them.
  if (std::ssize(threads_) < max_threads(kernels_.device())) {
    threads_.emplace_back([this](const std::stop_token& stop) { run(stop); });
  }
  handed_over_.notify_one();
}

// Hashes the oldest batch that waits; false if none does. `lock` holds mutex_, before and after.
bool HashBatch::hash_one(std::unique_lock<std::mutex>& lock) {
  if (waiting_.empty()) return false;
  const Batch batch = std::move(waiting_.front());
  waiting_.pop_front();
  lock.unlock();
  std::vector<quant::ContentHash> hashes;
  std::exception_ptr error;
  try {
    hashes = kernels_.hash(batch.jobs);
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  for (size_t i = 0; i < hashes.size(); ++i) *batch.sums[i] += hashes[i];
  if (error && !error_) error_ = error;
  open_.erase(batch.first);
  hashed_.notify_all();
  return true;
}

void HashBatch::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    if (hash_one(lock)) continue;
    handed_over_.wait(lock, stop, [this] { return !waiting_.empty(); });
  }
}

HashBatch::~HashBatch() = default;

int64_t HashBatch::num_hashed() const {
  const std::lock_guard lock(mutex_);
  return open_.empty() ? gathered_.first : *open_.begin();
}

void HashBatch::flush() {
  std::unique_lock lock(mutex_);
  queue_gathered();
  while (hash_one(lock)) continue;
  hashed_.wait(lock, [this] { return open_.empty(); });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace nibble
