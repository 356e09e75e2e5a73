#include "core/spec/parameters.h"

#include "core/base/fail.h"

namespace nibble {
namespace {

bool has_adapter(const ParameterSpec& parameter, LoraTargets targets) {
  if (parameter.layer < 0) return false;
  const bool is_attention = parameter.role == ParameterRole::kAttention;
  const bool is_mlp = parameter.role == ParameterRole::kMlp;
  return (is_attention && targets != LoraTargets::kMlp) ||
         (is_mlp && targets != LoraTargets::kAttention);
}

class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : config_(config) {}

  int64_t add(const std::string& module, ParameterRole role, int64_t rows, int64_t cols) {
    table_.parameters.push_back({module, role, rows, cols, layer_, expert_});
    return table_.size() - 1;
  }

  void add_attention(const std::string& prefix, LayerParameters& layer) {
    const auto role = ParameterRole::kAttention;
    layer.q = add(prefix + "q_proj", role, config_.q_rows(), config_.hidden);
    layer.k = add(prefix + "k_proj", role, config_.kv_rows(), config_.hidden);
    layer.v = add(prefix + "v_proj", role, config_.kv_rows(), config_.hidden);
    layer.o = add(prefix + "o_proj", role, config_.hidden, config_.q_rows());
    if (config_.qk_norm) {
      layer.q_norm = add(prefix + "q_norm", ParameterRole::kNorm, 1, config_.head_dim);
      layer.k_norm = add(prefix + "k_norm", ParameterRole::kNorm, 1, config_.head_dim);
    }
  }

  int64_t add_mlp(const std::string& prefix, ParameterRole role, int64_t intermediate) {
    const int64_t gate = add(prefix + "gate_proj", role, intermediate, config_.hidden);
    add(prefix + "up_proj", role, intermediate, config_.hidden);
    add(prefix + "down_proj", role, config_.hidden, intermediate);
    return gate;
  }

  void add_join() {
    const int64_t hidden = config_.hidden;
    table_.join = {add("model.enorm", ParameterRole::kNorm, 1, hidden),
                   add("model.hnorm", ParameterRole::kNorm, 1, hidden),
                   add("model.eh_proj", ParameterRole::kMlp, hidden, 2 * hidden)};
  }

  int64_t add_head() {
    const bool is_critic = config_.gives_values;
    return add(is_critic ? "score" : "lm_head", ParameterRole::kLmHead,
               is_critic ? 1 : config_.vocab, config_.hidden);
  }

  void add_layer(int64_t index) {
    layer_ = index;
    const std::string prefix = fmt::format("model.layers.{}.", index);
    LayerParameters layer;
    layer.input_norm = add(prefix + "input_layernorm", ParameterRole::kNorm, 1, config_.hidden);
    add_attention(prefix + "self_attn.", layer);
    layer.post_norm =
        add(prefix + "post_attention_layernorm", ParameterRole::kNorm, 1, config_.hidden);
    if (config_.layer_is_moe[static_cast<size_t>(index)]) {
      layer.router =
          add(prefix + "mlp.gate", ParameterRole::kRouter, config_.moe.num_experts, config_.hidden);
      for (expert_ = 0; expert_ < config_.moe.num_experts; ++expert_) {
        const int64_t gate = add_mlp(fmt::format("{}mlp.experts.{}.", prefix, expert_),
                                     ParameterRole::kExpert, config_.moe.intermediate);
        if (expert_ == 0) layer.first_expert = gate;
      }
      expert_ = -1;
    } else {
      layer.gate = add_mlp(prefix + "mlp.", ParameterRole::kMlp, config_.intermediate);
      layer.up = layer.gate + 1;
      layer.down = layer.gate + 2;
    }
    table_.layers.push_back(layer);
    layer_ = -1;
  }

  void add_adapter(int64_t index, const LoraShape& lora) {
    const ParameterSpec base = table_.at(index);
    layer_ = base.layer;
    AdapterParameters& adapter = table_.adapters[static_cast<size_t>(index)];
    adapter.a = add(base.module + ".lora_A", ParameterRole::kLoraA, lora.rank, base.cols);
    adapter.b = add(base.module + ".lora_B", ParameterRole::kLoraB, base.rows, lora.rank);
    layer_ = -1;
  }

  void add_adapters(const LoraShape& lora) {
    const int64_t base_size = table_.size();
    for (ParameterSpec& parameter : table_.parameters) parameter.is_frozen = true;
    table_.adapters.resize(static_cast<size_t>(base_size));
    for (int64_t p = 0; p < base_size; ++p) {
      if (has_adapter(table_.at(p), lora.targets)) add_adapter(p, lora);
    }
    table_.adapters.resize(static_cast<size_t>(table_.size()));
  }

  ParameterTable build() {
    table_.embedding =
        add("model.embed_tokens", ParameterRole::kEmbedding, config_.vocab, config_.hidden);
    if (config_.joins_hidden) add_join();
    for (int64_t i = 0; i < config_.num_layers; ++i) add_layer(i);
    table_.final_norm = add("model.norm", ParameterRole::kNorm, 1, config_.hidden);
    table_.lm_head = config_.tied_embeddings ? table_.embedding : add_head();
    table_.num_experts = config_.moe.num_experts;
    if (config_.lora) add_adapters(*config_.lora);
    return std::move(table_);
  }

 private:
  const ModelConfig& config_;
  ParameterTable table_;
  int64_t layer_ = -1;
  int64_t expert_ = -1;
};

}  // namespace

bool ParameterTable::is_head_norm(int64_t index) const {
  const int64_t layer = at(index).layer;
  if (layer < 0) return false;
  const LayerParameters& p = layers[static_cast<size_t>(layer)];
  return index == p.q_norm || index == p.k_norm;
}

bool ParameterTable::is_output_projection(int64_t index) const {
  const int64_t layer = at(index).layer;
  if (layer < 0) return false;
  const LayerParameters& p = layers[static_cast<size_t>(layer)];
  return index == p.o || index == p.down;
}

ParameterTable model_parameters(const ModelConfig& config) { return TableBuilder(config).build(); }

}  // namespace nibble
