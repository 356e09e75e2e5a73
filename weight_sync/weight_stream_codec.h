#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "weight_sync/manifest.h"
#include "weight_sync/weight_readers.h"

namespace nibble {

namespace v1 {
class WeightPart;
}

/// Whose weights they are.
struct StreamedModel {
  std::string job;
  std::string config_json;  ///< of the model, with its quantization_config
};

/// Bytes of a chunk. Below what gRPC takes by default, and a multiple of every element.
constexpr int64_t kWeightChunkBytes = 1 << 20;

/// Gives `write` the parts of a version in their order, one at a time: header, then every byte
/// once. `write` says whether somebody still listens; if not, throws Error{kCancelled}. Throws as
/// WeightReader::copy when the version gives way.
void stream_weights(const StreamedModel& model, const Manifest& manifest, WeightReader& reader,
                    const std::function<bool(const v1::WeightPart&)>& write);

}  // namespace nibble
