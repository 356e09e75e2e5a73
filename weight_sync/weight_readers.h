#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "weight_sync/manifest.h"
#include "weight_sync/receiver.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {

/// One reading of a served version. It has the weights on loan: a reader that is slow, stopped or
/// gone never keeps a buffer that the next publication needs, because WeightReaders takes the loan
/// back. Any thread may call any method.
class WeightReader {
 public:
  /// `manifest` must outlive this; of the first tensors that are served, or all of them.
  WeightReader(const Manifest& manifest, ServedWeights served);

  int64_t version() const { return version_; }
  const std::vector<quant::ContentHash>& tensor_hashes() const { return *tensor_hashes_; }
  /// Copies to.size() bytes from `offset` of a manifest tensor into host memory. Throws
  /// Error{kUnavailable} once the loan is over.
  void copy(int64_t tensor, int64_t offset, std::span<std::byte> to);
  /// Waits for a copy() in progress; later ones throw. Calls what on_loan_end() was given.
  void end_loan();
  /// `wake` ends a wait of the reader for its own peer; nothing: no more.
  void on_loan_end(std::function<void()> wake);
  bool has_loan();

 private:
  const int64_t version_;  // constant after construction, like the next
  const std::shared_ptr<const std::vector<quant::ContentHash>> tensor_hashes_;  // ServedWeights'
  std::mutex mutex_;
  std::shared_ptr<const ResidentWeights> weights_;  // guarded by mutex_; null: the loan is over
  std::function<void()> wake_;                      // guarded by mutex_
  const std::vector<LocalTensor> tensors_;          // memory of the weights; guarded by mutex_
};

/// Who reads what an engine serves, beside its work. Any thread may call any method.
class WeightReaders {
 public:
  /// At most `limit` at once. `manifest` must outlive this and its readers.
  WeightReaders(const Manifest& manifest, int limit) : manifest_(manifest), limit_(limit) {}

  /// Lends `served`, until the reader goes away or end_before() says so. Throws
  /// Error{kFailedPrecondition} if nothing may be read, or nothing newer than `newer_than` is
  /// served, Error{kResourceExhausted} beyond the limit, Error{kUnavailable} if the version has
  /// given way already.
  std::shared_ptr<WeightReader> open(ServedWeights served, int64_t newer_than);
  /// Ends the loans of versions below `version`, and lends none of them again.
  void end_before(int64_t version);

 private:
  const Manifest& manifest_;
  const int limit_;
  std::mutex mutex_;
  std::vector<std::weak_ptr<WeightReader>> readers_;  // guarded by mutex_
  int64_t lowest_version_ = 0;                        // guarded by mutex_
};

}  // namespace nibble
