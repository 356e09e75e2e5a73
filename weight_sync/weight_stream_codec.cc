#include "weight_sync/weight_stream_codec.h"

#include <algorithm>
#include <span>

#include "core/base/fail.h"
#include "proto/nibble.pb.h"

namespace nibble {
namespace {

v1::WeightPart encode_header(const StreamedModel& model, const Manifest& manifest,
                             const WeightReader& reader) {
  v1::WeightPart part;
  v1::WeightHeader& header = *part.mutable_header();
  header.set_job(model.job);
  header.set_version(reader.version());
  header.set_manifest_text(manifest_text(manifest));
  header.set_manifest_digest(digest_bytes(manifest.digest));
  header.set_bytes(manifest.bytes);
  // What is served may hold more, behind the model's.
  for (const quant::ContentHash& hash :
       std::span(reader.tensor_hashes()).first(manifest.tensors.size())) {
    v1::ContentHash& out = *header.add_tensor_hashes();
    out.set_low(hash.low);
    out.set_high(hash.high);
  }
  header.set_config_json(model.config_json);
  return part;
}

}  // namespace

void stream_weights(const StreamedModel& model, const Manifest& manifest, WeightReader& reader,
                    const std::function<bool(const v1::WeightPart&)>& write) {
  int64_t written_bytes = 0;
  const auto send = [&](const v1::WeightPart& part) {
    if (write(part)) return;
    fail(ErrorCode::kCancelled, "who read version {} is gone after {} of {} bytes",
         reader.version(), written_bytes, manifest.bytes);
  };
  send(encode_header(model, manifest, reader));
  v1::WeightPart part;  // one for all: its memory is used again
  v1::WeightChunk& chunk = *part.mutable_chunk();
  for (int64_t t = 0; t < manifest.size(); ++t) {
    const int64_t tensor_bytes = manifest.at(t).bytes();
    for (int64_t offset = 0; offset < tensor_bytes; offset += kWeightChunkBytes) {
      const int64_t bytes = std::min(kWeightChunkBytes, tensor_bytes - offset);
      std::string& data = *chunk.mutable_data();
      data.resize(static_cast<size_t>(bytes));
      reader.copy(t, offset, std::as_writable_bytes(std::span(data)));
      chunk.set_tensor(static_cast<int32_t>(t));
      chunk.set_offset(offset);
      send(part);
      written_bytes += bytes;
    }
  }
}

}  // namespace nibble
