#include "weight_sync/stored_bytes.h"

#include <limits>

#include "core/base/fail.h"
#include "weight_sync/hash_batch.h"

namespace nibble {

std::span<const std::byte> stored_bytes(const StoredParameter& parameter,
                                        const StoredTensor& tensor) {
  switch (tensor.kind) {
    case StoredKind::kWords:
      return std::as_bytes(std::span(parameter.words));
    case StoredKind::kScale:
      return std::as_bytes(std::span(parameter.scale));
    case StoredKind::kBf16:
      return std::as_bytes(std::span(parameter.bf16));
  }
  return {};
}

std::span<std::byte> stored_bytes(StoredParameter& parameter, const StoredTensor& tensor) {
  const auto bytes = stored_bytes(std::as_const(parameter), tensor);
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

std::vector<LocalTensor> shard_tensors(const Manifest& manifest,
                                       std::span<const StoredParameter> parameters,
                                       std::span<const Slice> slices) {
  std::vector<LocalTensor> tensors(static_cast<size_t>(manifest.size()));
  for (const Slice& slice : slices) {
    LocalTensor& local = tensors[static_cast<size_t>(slice.tensor)];
    local.row_begin = slice.row_begin;
    local.row_end = slice.row_end;
  }
  for (int64_t t = 0; t < manifest.size(); ++t) {
    const StoredTensor& tensor = manifest.at(t);
    LocalTensor& local = tensors[static_cast<size_t>(t)];
    local.bytes = stored_bytes(parameters[static_cast<size_t>(tensor.parameter)], tensor);
    const int64_t rows = local.row_end - local.row_begin;
    if (std::ssize(local.bytes) != rows * tensor.row_bytes()) {
      fail(ErrorCode::kInvalidArgument,
           "tensor '{}': {} bytes are held for rows [{}, {}) of {} bytes", tensor.name,
           local.bytes.size(), local.row_begin, local.row_end, tensor.row_bytes());
    }
  }
  return tensors;
}

std::vector<LocalTensor> replica_tensors(const Manifest& manifest, const ResidentWeights& weights) {
  std::vector<LocalTensor> tensors;
  for (const StoredTensor& tensor : manifest.tensors) {
    tensors.push_back({0, tensor.rows, stored_bytes(weights.stored(tensor.parameter), tensor)});
  }
  return tensors;
}

std::vector<std::span<const std::byte>> edge_pieces(const Manifest& manifest, const Edge& edge,
                                                    std::span<const LocalTensor> tensors) {
  std::vector<std::span<const std::byte>> pieces;
  for (const PlannedSlice& planned : edge.slices) {
    const LocalTensor& local = tensors[static_cast<size_t>(planned.slice.tensor)];
    const StoredTensor& tensor = manifest.at(planned.slice.tensor);
    if (planned.slice.row_begin < local.row_begin || planned.slice.row_end > local.row_end) {
      fail(ErrorCode::kFailedPrecondition,
           "the plan asks sender {} for rows [{}, {}) of tensor '{}'; it holds [{}, {})",
           edge.sender, planned.slice.row_begin, planned.slice.row_end, tensor.name,
           local.row_begin, local.row_end);
    }
    const int64_t offset = planned.byte_begin - local.row_begin * tensor.row_bytes();
    pieces.push_back(
        local.bytes.subspan(static_cast<size_t>(offset), static_cast<size_t>(planned.bytes())));
  }
  return pieces;
}

std::vector<quant::ContentHash> content_hashes(const Manifest& manifest,
                                               std::span<const LocalTensor> tensors,
                                               const kernels::WeightKernels& kernels) {
  std::vector<quant::ContentHash> hashes(tensors.size());
  HashBatch batch(kernels, std::numeric_limits<int64_t>::max());
  for (size_t t = 0; t < tensors.size(); ++t) {
    const StoredTensor& tensor = manifest.tensors[t];
    batch.add(tensor, tensors[t].row_begin * tensor.row_elements, tensors[t].bytes, &hashes[t]);
  }
  batch.flush();
  return hashes;
}

std::vector<quant::ContentHash> content_hashes(const Manifest& manifest,
                                               const ResidentWeights& weights,
                                               const kernels::WeightKernels& kernels) {
  return content_hashes(manifest, replica_tensors(manifest, weights), kernels);
}

}  // namespace nibble
