#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/array.h"
#include "core/kernels/weight_kernels.h"
#include "weight_sync/bucket_plan.h"

namespace nibble {

/// Pieces [begin, end) of an edge, which a delta encodes and sends together.
struct PieceRange {
  size_t begin = 0;
  size_t end = 0;
};
/// Cuts an edge into ranges of two buckets, or of one piece that is larger: the memory that a delta
/// needs on either side is some of that, never of the model. Pure: both sides compute the same.
std::vector<PieceRange> delta_ranges(std::span<const int64_t> piece_bytes,
                                     const TransferSizes& sizes);

/// What changed between two versions of some pieces: `header`, in host memory, whose size the
/// pieces tell, then `payload`, in the kernels' memory: for each piece the shortest of the list of
/// its changed bytes (core/kernels/byte_changes.h), of its XOR compressed with Zstandard (in host
/// memory only), and of its own bytes.
struct EncodedDelta {
  std::vector<std::byte> header;
  std::vector<std::span<const std::byte>> payload;  ///< none if nothing changed
  Array<std::byte> lists;                           ///< that `payload` points into
  std::vector<std::vector<std::byte>> frames;       ///< likewise; one a piece
};
/// `base` and `next`: memory of `kernels`, of the same sizes; `next` must outlive the result.
EncodedDelta encode_delta(const kernels::WeightKernels& kernels, ConstPieces base,
                          ConstPieces next);

int64_t delta_header_bytes(std::span<const int64_t> piece_bytes);

/// Applies a delta to `target`, memory of `kernels`, which must outlive this like `kernels`.
class DeltaDecoder {
 public:
  /// Reads any bytes: throws Error{kDataLoss} if they are not a header of such pieces. The header
  /// has a hash of its own, because a transfer of another size than was sent ends a process that
  /// uses Gloo.
  DeltaDecoder(const kernels::WeightKernels& kernels, std::span<const std::byte> header,
               Pieces target);
  /// Where the payload goes: fill it, then call apply().
  std::vector<std::span<std::byte>> payload();
  /// Brings `target` from `base`, which may be the same memory, to the next version. Reads any
  /// payload: throws Error{kDataLoss}; `target` is then undefined.
  void apply(ConstPieces base);

 private:
  enum class Form { kWhole, kFrame, kList };
  const kernels::WeightKernels& kernels_;
  const std::vector<std::span<std::byte>> target_;
  std::vector<uint32_t> counts_;                // of changed bytes, one a block of each piece
  std::vector<Form> forms_;                     // one a piece
  Array<std::byte> lists_;                      // in the kernels' memory, one after the other
  std::vector<std::vector<std::byte>> frames_;  // one a piece; empty if it has another form
};

}  // namespace nibble
