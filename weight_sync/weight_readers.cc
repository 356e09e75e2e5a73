#include "weight_sync/weight_readers.h"

#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

[[noreturn]] void fail_superseded(int64_t version) {
  fail(ErrorCode::kUnavailable, "version {} gave way to a newer one while it was read; read that",
       version);
}

}  // namespace

WeightReader::WeightReader(const Manifest& manifest, ServedWeights served)
    : version_(served.version),
      tensor_hashes_(std::move(served.tensor_hashes)),
      weights_(std::move(served.weights)),
      tensors_(replica_tensors(manifest, *weights_)) {}

void WeightReader::copy(int64_t tensor, int64_t offset, std::span<std::byte> to) {
  const std::lock_guard lock(mutex_);
  if (weights_ == nullptr) fail_superseded(version_);
  const std::span<const std::byte> from = tensors_[static_cast<size_t>(tensor)].bytes;
  NIBBLE_CHECK(offset >= 0 && offset + std::ssize(to) <= std::ssize(from),
               "bytes [{}, {}) of a tensor of {}", offset, offset + std::ssize(to), from.size());
  device_memory(weights_->device()).copy(to.data(), from.data() + offset, std::ssize(to));
}

void WeightReader::end_loan() {
  std::shared_ptr<const ResidentWeights> last;  // let go of after the lock
  const std::lock_guard lock(mutex_);
  last = std::move(weights_);
  if (wake_) wake_();
}

void WeightReader::on_loan_end(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
  if (wake_ && weights_ == nullptr) wake_();
}

bool WeightReader::has_loan() {
  const std::lock_guard lock(mutex_);
  return weights_ != nullptr;
}

std::shared_ptr<WeightReader> WeightReaders::open(ServedWeights served, int64_t newer_than) {
  if (limit_ == 0) {
    fail(ErrorCode::kFailedPrecondition,
         "this job lets no external engine read its weights: cluster.external_engines is 0");
  }
  if (newer_than < 0) {
    fail(ErrorCode::kInvalidArgument, "newer_than is {}; it must not be negative", newer_than);
  }
  if (served.weights == nullptr) {
    fail(ErrorCode::kFailedPrecondition, "nothing is served yet, or just now: ask again later");
  }
  if (served.version <= newer_than) {
    fail(ErrorCode::kFailedPrecondition,
         "version {} is served, nothing newer than {}: ask again later", served.version,
         newer_than);
  }
  const std::lock_guard lock(mutex_);
  if (served.version < lowest_version_) fail_superseded(served.version);
  std::erase_if(readers_, [](const auto& entry) {
    const auto reader = entry.lock();
    return !reader || !reader->has_loan();
  });
  if (std::ssize(readers_) >= limit_) {
    fail(ErrorCode::kResourceExhausted,
         "{} external engines read from this engine already, as many as cluster.external_engines "
         "permits: try another, or again later",
         readers_.size());
  }
  auto reader = std::make_shared<WeightReader>(manifest_, std::move(served));
  readers_.push_back(reader);
  return reader;
}

void WeightReaders::end_before(int64_t version) {
  const std::lock_guard lock(mutex_);
  lowest_version_ = std::max(lowest_version_, version);
  for (const auto& entry : readers_) {
    const auto reader = entry.lock();
    if (reader && reader->version() < version) reader->end_loan();
  }
}

}  // namespace nibble
