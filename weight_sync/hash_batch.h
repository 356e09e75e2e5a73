#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <set>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/quant/hash.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/manifest.h"
#include "weight_sync/plan.h"

namespace nibble {

/// Hashes stored bytes while they are moved: beside the thread that moves them, or the wire would
/// wait for every hash, and many pieces a call, because on a GPU each call costs a launch and a
/// wait. One thread calls it.
class HashBatch {
 public:
  /// Hands what has gathered over when it is `batch_bytes` or a mebibyte, whichever is more.
  /// `kernels` is borrowed.
  HashBatch(const kernels::WeightKernels& kernels, int64_t batch_bytes);
  /// Drops what has not begun.
  ~HashBatch();
  HashBatch(const HashBatch&) = delete;
  HashBatch& operator=(const HashBatch&) = delete;

  /// Adds the hash of `bytes`, which begin at element `first_element` of `tensor`, to *sum, at the
  /// latest in flush(). Both must stay until then, the bytes unchanged.
  void add(const StoredTensor& tensor, int64_t first_element, std::span<const std::byte> bytes,
           quant::ContentHash* sum);
  /// The same of a segment of a piece that is moved: `piece` holds the bytes of `planned`.
  void add(const Manifest& manifest, const PlannedSlice& planned, const Segment& segment,
           std::span<const std::byte> piece, quant::ContentHash* sum);
  /// Returns when all is hashed; throws what a hash threw.
  void flush();
  int64_t num_added() const { return num_added_; }
  /// How many of the first add()s are in their sums, which may be read then.
  int64_t num_hashed() const;

 private:
  struct Batch {
    std::vector<kernels::HashJob> jobs;
    std::vector<quant::ContentHash*> sums;  // one per job
    int64_t first = 0;                      // of the add()s
  };
  void queue_gathered();  // under mutex_
  void hand_over();
  bool hash_one(std::unique_lock<std::mutex>& lock);
  void run(const std::stop_token& stop);

  const kernels::WeightKernels& kernels_;
  const int64_t batch_bytes_;
  Batch gathered_;
  int64_t gathered_bytes_ = 0, num_added_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable_any handed_over_, hashed_;
  std::deque<Batch> waiting_;  // guarded by mutex_, like the next two
  std::set<int64_t> open_;     // first add() of each batch that is handed over and not hashed
  std::exception_ptr error_;   // the first
  std::vector<std::jthread> threads_;  // last: they end before the rest goes away
};

}  // namespace nibble
