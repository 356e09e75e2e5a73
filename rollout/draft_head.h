#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/weight_source.h"

namespace nibble {

/// A draft head in memory. Not movable: the weights borrow the specification.
struct DraftHead {
  ModelSpec spec;
  std::shared_ptr<const ResidentWeights> weights;  // shared: as an engine's
  explicit DraftHead(ModelSpec head_spec) : spec(std::move(head_spec)) {}
  DraftHead(const DraftHead&) = delete;
  DraftHead& operator=(const DraftHead&) = delete;
};

/// Reads a head for a model, or makes one of random weights if `head` is "random". A directory has
/// safetensors in BF16 and a config.json with the keys that save_draft_head() writes, of which
/// only model_type, format_version, vocab_size and hidden_size must be there; the others are the
/// model's where they are left out. Tensors have one prefix of any kind (as "model.layers.61." in
/// DeepSeek's checkpoints) or none, and behind it the names
///   enorm, hnorm, eh_proj, shared_head.norm     .weight
///   input_layernorm, self_attn.q_proj, ..       .weight, as in a layer of Llama or Qwen3
/// Copies of the model's embed_tokens and shared_head.head are not read. Throws Error naming
/// `what` (the flag that names the head), the file, and the key or tensor that is wrong.
std::shared_ptr<const DraftHead> load_draft_head(const std::string& what, const std::string& head,
                                                 const ModelSpec& model);

/// Writes such a directory, without prefix; files of an earlier head there are replaced.
void save_draft_head(const std::filesystem::path& directory, const ModelSpec& head,
                     const ResidentWeights& weights);

/// The head's weights where an engine on the process's GPU wants them.
std::shared_ptr<const ops::WeightSource> head_weights_on_gpu(std::shared_ptr<const DraftHead> head);
/// For Engine::set_draft_weights(); they keep the head alive.
std::shared_ptr<const ops::WeightSource> head_weights(std::shared_ptr<const DraftHead> head);

}  // namespace nibble
