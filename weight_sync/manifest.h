#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/spec/quantization.h"
#include "weight_sync/digest.h"

namespace nibble {

/// What the bytes of a stored tensor are.
enum class StoredKind {
  kWords,  ///< packed codes, `X.weight_packed`, 32-bit words
  kScale,  ///< one BF16 scale a group, `X.weight_scale`
  kBf16,   ///< an unquantized weight, `X.weight`
};

/// One tensor as it is stored, sent and hashed: row-major, rows never split by padding.
struct StoredTensor {
  std::string name;
  StoredKind kind = StoredKind::kBf16;
  int64_t parameter = 0;  ///< index in the ParameterTable
  int64_t rows = 0;
  int64_t row_elements = 0;
  bool is_frozen = false;  ///< the same in every version (ParameterSpec)

  int64_t element_bytes() const { return kind == StoredKind::kWords ? 4 : 2; }
  int64_t row_bytes() const { return row_elements * element_bytes(); }
  int64_t bytes() const { return rows * row_bytes(); }
};

/// How weights became bytes. Sides that differ in any field refuse each other.
struct StoredFormat {
  int bits = 16;  ///< of a code; 16: nothing is quantized
  int64_t group_size = 0;
  std::string grid = "none";
  std::string scale_type = "bf16";
  std::string pack_order = "offset-binary-lowest-first";  ///< core/quant/pack.h
  std::string layout = "row-major";
};

/// All stored tensors of a model in canonical order (ParameterTable's; words before scales).
struct Manifest {
  StoredFormat format;
  std::vector<StoredTensor> tensors;
  int64_t bytes = 0;
  Digest digest;  ///< of manifest_text()

  const StoredTensor& at(int64_t tensor) const { return tensors[static_cast<size_t>(tensor)]; }
  int64_t size() const { return static_cast<int64_t>(tensors.size()); }
};

/// The rules that make codes: sym7 scales, derived at every packing, or scales that are held.
constexpr const char* kDerivedGrid = "sym7";
constexpr const char* kHeldGrid = "held";

Manifest make_manifest(const ParameterTable& table, const QuantizationPlan& plan,
                       const std::string& grid = kDerivedGrid);

/// Canonical text: one line a format field and a tensor, and one that counts the frozen ones where
/// there are any.
std::string manifest_text(const Manifest& manifest);

/// The first difference between two manifest texts as one sentence for a refusal, or nothing if
/// they are equal. Reads any text: a peer may send its own.
std::optional<std::string> manifest_diff(std::string_view trainer_text,
                                         std::string_view worker_text);

}  // namespace nibble
