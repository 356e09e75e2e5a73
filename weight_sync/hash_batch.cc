#include "weight_sync/hash_batch.h"

#include "core/base/fail.h"

namespace nibble {

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
  jobs_.push_back(job);
  sums_.push_back(sum);
  gathered_bytes_ += std::ssize(bytes);
  if (gathered_bytes_ >= flush_bytes_) flush();
}

void HashBatch::add(const Manifest& manifest, const PlannedSlice& planned, const Segment& segment,
                    std::span<const std::byte> piece, quant::ContentHash* sum) {
  const StoredTensor& tensor = manifest.at(planned.slice.tensor);
  const int64_t first = (planned.byte_begin + segment.offset) / tensor.element_bytes();
  add(tensor, first,
      piece.subspan(static_cast<size_t>(segment.offset), static_cast<size_t>(segment.bytes)), sum);
}

void HashBatch::flush() {
  const std::vector<quant::ContentHash> hashes = kernels_.hash(jobs_);
  for (size_t i = 0; i < hashes.size(); ++i) *sums_[i] += hashes[i];
  jobs_.clear();
  sums_.clear();
  gathered_bytes_ = 0;
}

}  // namespace nibble
