#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/checkpoint/safetensors.h"
#include "core/quant/hash.h"
#include "core/spec/mesh.h"
#include "trainer/parallel/packed_shards.h"
#include "trainer/state/optimizer_state.h"

namespace nibble {

/// Whose state a file of rows holds.
enum class RowsOf { kModel, kCritic };

/// The file of one rank's rows: "rank-000-of-002.safetensors", "critic-000-of-002.safetensors".
std::string row_file_name(RowsOf whose, int rank, int world);

/// Metadata key of such a file: the content hash of its rows of one parameter, 32 hex digits.
std::string checkpoint_hash_key(const std::string& kind, const ParameterSpec& parameter);
std::string content_hash_text(const quant::ContentHash& hash);

/// Writes this rank's float32 "m", "master" and "v" rows, and held scales, with their content
/// hashes. Durable when it returns. Throws Error{kResourceExhausted} for a full disk.
///   state  in host memory, or in files
void write_row_file(const std::filesystem::path& path, const ShardLayout& layout,
                    const OptimizerState& state);

/// The row files of one model in a checkpoint, mapped: any rows of any parameter, however many
/// ranks wrote them. Immutable after construction; any thread may read.
class RowFiles {
 public:
  /// Throws Error naming the file that is missing or damaged.
  RowFiles(const std::filesystem::path& checkpoint, RowsOf whose, int world);

  const std::vector<SafetensorsFile>& files() const { return files_; }

  /// Rows of a parameter's "master", "m" or "v" in float32, from slices whose hashes are checked.
  /// Throws Error naming the file and tensor that is missing, misshapen, damaged or leaves rows
  /// out.
  void read_rows(const std::string& kind, const ParameterSpec& parameter, RowShard rows,
                 std::vector<float>& out) const;
  /// Held scales, BF16 bits [rows, groups_per_row]; errors as in read_rows(), and for a scale that
  /// cannot be held.
  void read_scales(const ParameterSpec& parameter, int64_t groups_per_row, RowShard rows,
                   std::vector<uint16_t>& out) const;

 private:
  // What is kept of each row of a parameter under one name.
  struct Slices {
    std::string kind;
    DType dtype;
    int64_t width;  // elements of a row
  };
  RowShard rows_in_file(const SafetensorsFile& file, const Slices& slices,
                        const ParameterSpec& parameter) const;
  void check_hash(const SafetensorsFile& file, const Slices& slices, const ParameterSpec& parameter,
                  int64_t first_row) const;
  void read_slices(const Slices& slices, const ParameterSpec& parameter, RowShard rows,
                   std::byte* out) const;

  std::filesystem::path checkpoint_;
  std::vector<SafetensorsFile> files_;  // by rank
};

}  // namespace nibble
