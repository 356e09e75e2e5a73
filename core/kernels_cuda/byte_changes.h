#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/kernels/byte_changes.h"

namespace nibble::kernels::cuda {

/// A thread block's work: one change block of a job, and where its entries are in the list.
/// Pointers and lists here are the device's; launches are asynchronous.
struct ChangeBlock {
  int64_t begin = 0;  ///< byte of the array
  int64_t first_entry = 0;
  int32_t job = 0;
  int32_t bytes = 0;
  int32_t entries = 0;
};

/// counts[i] of blocks[i].
void launch_count_byte_changes(const ByteChangeJob* jobs, const ChangeBlock* blocks,
                               size_t num_blocks, uint32_t* counts, cudaStream_t stream);
void launch_list_byte_changes(const ByteChangeJob* jobs, const ChangeBlock* blocks,
                              size_t num_blocks, std::byte* list, cudaStream_t stream);
/// Sets *outside if an entry names a place outside its block.
void launch_apply_byte_changes(const ByteTarget* targets, const ChangeBlock* blocks,
                               size_t num_blocks, const std::byte* list, unsigned* outside,
                               cudaStream_t stream);

}  // namespace nibble::kernels::cuda
