#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/models/weights.h"
#include "core/quant/hash.h"
#include "weight_sync/layout.h"
#include "weight_sync/manifest.h"
#include "weight_sync/plan.h"

namespace nibble {

/// Rows [row_begin, row_end) of one stored tensor, in memory of this process.
struct LocalTensor {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  std::span<const std::byte> bytes;
};

/// The array of a stored parameter that `tensor` names.
std::span<const std::byte> stored_bytes(const StoredParameter& parameter,
                                        const StoredTensor& tensor);
std::span<std::byte> stored_bytes(StoredParameter& parameter, const StoredTensor& tensor);

/// A trainer rank's rows, one entry per manifest tensor, no rows where it has no slice:
/// `parameters` holds the rows of `slices` (owned_slices), and must outlive the result. Throws
/// Error{kInvalidArgument} naming the tensor if an array has another size.
std::vector<LocalTensor> shard_tensors(const Manifest& manifest,
                                       std::span<const StoredParameter> parameters,
                                       std::span<const Slice> slices);

/// All rows of resident weights: a worker that hands its version on, or a trainer of one rank.
std::vector<LocalTensor> replica_tensors(const Manifest& manifest, const ResidentWeights& weights);

/// The memory of an edge's slices, in its order: `tensors` are its sender's. Throws
/// Error{kFailedPrecondition} naming the tensor if the sender does not hold a slice.
std::vector<std::span<const std::byte>> edge_pieces(const Manifest& manifest, const Edge& edge,
                                                    std::span<const LocalTensor> tensors);

/// One hash per manifest tensor over the rows at hand. Hashes of disjoint rows add up: the sum
/// over the trainer's ranks equals the hashes of a replica that serves the same weights.
std::vector<quant::ContentHash> content_hashes(const Manifest& manifest,
                                               std::span<const LocalTensor> tensors,
                                               const kernels::WeightKernels& kernels);
std::vector<quant::ContentHash> content_hashes(const Manifest& manifest,
                                               const ResidentWeights& weights,
                                               const kernels::WeightKernels& kernels);

}  // namespace nibble
