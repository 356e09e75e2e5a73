#include "trainer/activation_plan.h"

#include <algorithm>
#include <optional>

#include "core/ops/logit_chunk.h"

namespace nibble {
namespace {

constexpr int64_t kFloatBytes = 4;  // int32 too
constexpr int64_t kBusyExpert = 2;  // rows of a layer's busiest expert, over an even part

// Bytes of one layer, of all tokens.
struct LayerBytes {
  int64_t attention = 0;          // kept of attention, with the stream that it leaves
  int64_t mlp = 0;                // of the rest
  int64_t attention_dropped = 0;  // of these, what Recompute::kSelective makes again
  int64_t mlp_dropped = 0;
  int64_t choices = 0;  // experts of each token, which Recompute::kFull keeps
  // What a backward pass takes beside what is kept, at its worst.
  int64_t attention_backward = 0;
  int64_t mlp_backward = 0;

  int64_t kept() const { return attention + mlp; }
  int64_t dropped() const { return attention_dropped + mlp_dropped; }
};

class ActivationSizes {
 public:
  ActivationSizes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                  const ActivationLoad& load)
      : whole_(whole),
        own_(own),
        mesh_(mesh),
        load_(load),
        element_(load.device == DeviceKind::kCpu ? 4 : 2) {}

  LayerBytes layer(bool is_moe) const {
    LayerBytes bytes;
    add_attention(bytes);
    if (is_moe) {
      add_experts(bytes);
    } else {
      add_dense(bytes);
    }
    return bytes;
  }
  /// The residual stream.
  int64_t stream() const { return values(whole_.hidden); }
  /// Kept outside of layers: token ids, the last norm's result, and of each target its row, token,
  /// statistics, log-probability, entropy and their gradients.
  int64_t outside() const {
    return kFloatBytes * load_.tokens + stream() + load_.targets * (8 + 8 * kFloatBytes);
  }
  /// Of the head's backward pass: its matrix, the gradient of hidden states, a chunk of logits.
  int64_t head_backward() const {
    const bool on_cpu = load_.device == DeviceKind::kCpu;
    if (whole_.gives_values) {
      // Of each row; of this rank's part of the rows it is there beside the whole.
      return stream() + (mesh_.tensor > 1 ? stream() / mesh_.tensor : 0) + panel(1, whole_.hidden) +
             2 * kFloatBytes * load_.tokens;
    }
    const int64_t chunk =
        on_cpu ? ops::cpu_logit_rows(whole_.vocab) : ops::gpu_logit_rows(whole_.vocab);
    const int64_t rows = std::min(load_.targets, chunk);
    const int64_t logits = rows * whole_.vocab * (on_cpu ? kFloatBytes : kFloatBytes + element_);
    const int64_t hidden = rows * whole_.hidden * element_;
    if (on_cpu) return stream() + panel(whole_.vocab, whole_.hidden) + logits + 2 * hidden;
    return stream() + load_.targets * whole_.hidden * element_ + logits + hidden;
  }

 private:
  int64_t values(int64_t width) const { return load_.tokens * width * element_; }
  int64_t panel(int64_t rows, int64_t cols) const { return rows * cols * element_; }

  // What the tape keeps of one adapter, scale * (x A^T); 0 where `targets` get none.
  int64_t low(LoraTargets targets) const {
    const std::optional<LoraShape>& lora = whole_.lora;
    const bool has_any =
        lora && (lora->targets == targets || lora->targets == LoraTargets::kLinear);
    return has_any ? values(lora->rank) : 0;
  }
  // What the backward pass of a product takes more with an adapter, beside the gradient of its
  // input [tokens, width]: low() before and after scaling, a second summand, A.
  int64_t adapter_backward(LoraTargets targets, int64_t width) const {
    if (low(targets) == 0) return 0;
    return 2 * low(targets) + values(width) + panel(whole_.lora->rank, width);
  }

  void add_attention(LayerBytes& bytes) const {
    const auto targets = LoraTargets::kAttention;
    const int64_t q = values(own_.q_rows()), kv = values(own_.kv_rows());
    const int64_t turned = q + kv;                        // by RoPE
    const int64_t others = 2 * kv * (mesh_.context - 1);  // keys and values of other ranks' tokens
    const int64_t gathered = mesh_.tensor > 1 ? values(whole_.q_rows()) : 0;
    bytes.attention = stream() + (own_.qk_norm ? q + kv : 0) + turned + kv + others + q +
                      kFloatBytes * load_.tokens * own_.num_heads + gathered + stream() +
                      4 * low(targets);
    bytes.attention_dropped = stream() + (own_.qk_norm ? turned : 0);
    // Ranks' columns get their gradient after the adapter has given its summand.
    const int64_t output = std::max(2 * gathered, adapter_backward(targets, whole_.q_rows())) +
                           panel(whole_.hidden / mesh_.tensor, whole_.q_rows());
    const int64_t input = 2 * stream() + q + 2 * kv + panel(own_.q_rows(), whole_.hidden) +
                          adapter_backward(targets, whole_.hidden);
    bytes.attention_backward =
        std::max({stream() + q + output, stream() + 2 * q + 2 * kv + others, input});
  }

  void add_dense(LayerBytes& bytes) const {
    const auto targets = LoraTargets::kMlp;
    const int64_t inner = values(own_.intermediate), product = values(whole_.intermediate);
    bytes.mlp = stream() + 2 * inner + product + stream() + 3 * low(targets);
    bytes.mlp_dropped = stream() + (mesh_.tensor == 1 ? product : 0);
    const int64_t gathered = mesh_.tensor > 1 ? 2 * product : 0;
    const int64_t output = std::max(gathered, adapter_backward(targets, whole_.intermediate)) +
                           panel(whole_.hidden / mesh_.tensor, whole_.intermediate);
    // Of gate and up; the product is not kept any more.
    const int64_t given_up = mesh_.tensor == 1 ? product : 0;
    const int64_t input =
        low(targets) == 0 ? 0 : 2 * stream() + 2 * inner + adapter_backward(targets, whole_.hidden);
    bytes.mlp_backward =
        std::max({stream() + product + output, stream() + 3 * inner - given_up, input - given_up});
  }

  void add_experts(LayerBytes& bytes) const {
    const MoeConfig& moe = whole_.moe;
    const int64_t tokens = (load_.tokens + mesh_.tensor - 1) / mesh_.tensor;
    const int64_t pairs = tokens * moe.top_k;
    const bool travels = mesh_.expert > 1;
    const int64_t rows =
        travels ? load_.expert_skew * pairs : pairs;  // that this rank's experts get
    const int64_t wide = whole_.hidden * element_, inner = rows * moe.intermediate * element_;
    // Probabilities; choices, their weights and two orders.
    const int64_t routed = kFloatBytes * (tokens * moe.num_experts + 4 * pairs);
    bytes.choices = kFloatBytes * pairs;
    bytes.mlp = stream() + routed + pairs * wide + 3 * inner + stream() +
                (travels ? rows * (wide + 2 * kFloatBytes) : 0);
    bytes.mlp_dropped = stream() + inner;
    const bool on_cpu = load_.device == DeviceKind::kCpu;
    const int64_t experts = moe.num_experts / mesh_.expert;
    // On a CPU one expert at a time.
    const int64_t busy = on_cpu ? kBusyExpert * rows / experts : rows;
    const int64_t matrices = panel(moe.intermediate, whole_.hidden) * (on_cpu ? 1 : experts);
    const int64_t input = travels ? 0 : pairs * wide;  // gathered again
    bytes.mlp_backward = stream() + input + 2 * rows * wide + matrices +
                         busy * (3 * moe.intermediate + (on_cpu ? whole_.hidden : 0)) * element_;
  }

  const ModelConfig& whole_;
  const ModelConfig& own_;
  const Mesh& mesh_;
  const ActivationLoad& load_;
  const int64_t element_;  // bytes of an activation
};

}  // namespace

int64_t peak_activation_bytes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                              const ActivationLoad& load) {
  const ActivationSizes sizes(whole, own, mesh, load);
  int64_t kept = sizes.stream();  // embeddings
  int64_t peak = 0;
  for (const bool is_moe : whole.layer_is_moe) {
    const LayerBytes layer = sizes.layer(is_moe);
    // At its backward pass all of a layer is there, of those before it what they keep.
    const int64_t in_mlp = kept + layer.kept() + layer.mlp_backward;
    const int64_t in_attention = kept + layer.attention + layer.attention_backward;
    peak = std::max({peak, in_mlp, in_attention});
    switch (load.recompute) {
      case Recompute::kNone:
        kept += layer.kept();
        break;
      case Recompute::kSelective:
        kept += layer.kept() - layer.dropped();
        break;
      case Recompute::kFull:
        kept += sizes.stream() + layer.choices;
        break;
    }
  }
  return sizes.outside() + std::max(peak, kept + sizes.head_backward());
}

int64_t largest_layer_bytes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                            const ActivationLoad& load) {
  const ActivationSizes sizes(whole, own, mesh, load);
  int64_t largest = 0;
  for (const bool is_moe : whole.layer_is_moe) {
    largest = std::max(largest, sizes.layer(is_moe).kept());
  }
  return largest;
}

int64_t forward_activation_bytes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                                 const ActivationLoad& load) {
  const ActivationSizes sizes(whole, own, mesh, load);
  return sizes.outside() + sizes.stream() +
         std::max(sizes.head_backward(), largest_layer_bytes(whole, own, mesh, load));
}

}  // namespace nibble
