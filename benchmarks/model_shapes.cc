#include "benchmarks/model_shapes.h"

#include <ATen/ops/from_blob.h>

#include <cmath>

#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

struct Widths {
  int64_t hidden, intermediate, layers, heads, kv_heads, vocab;
};

ModelConfig qwen3(const Widths& w) {
  ModelConfig c;
  c.architecture = Architecture::kQwen3;
  c.vocab = w.vocab;
  c.hidden = w.hidden;
  c.intermediate = w.intermediate;
  c.num_layers = w.layers;
  c.num_heads = w.heads;
  c.num_kv_heads = w.kv_heads;
  c.head_dim = 128;
  c.max_position = 40960;
  c.qk_norm = true;
  c.tied_embeddings = true;
  c.rope.theta = 1e6;
  return c;
}

ModelConfig qwen3_moe(const Widths& w, const MoeConfig& moe) {
  ModelConfig c = qwen3(w);
  c.architecture = Architecture::kQwen3Moe;
  c.tied_embeddings = false;
  c.moe = moe;
  return c;
}

ModelConfig named_shape(const std::string& name) {
  constexpr int64_t kVocab = 151936, kTinyVocab = 1024;
  if (name == "qwen3-0.6b") return qwen3({1024, 3072, 28, 16, 8, kVocab});
  if (name == "qwen3-4b") return qwen3({2560, 9728, 36, 32, 8, kVocab});
  if (name == "30b-a3b") return qwen3_moe({2048, 6144, 48, 32, 4, kVocab}, {128, 8, 768, true});
  if (name == "tiny-dense") return qwen3({256, 512, 3, 4, 2, kTinyVocab});
  if (name == "tiny-moe") return qwen3_moe({256, 512, 3, 4, 2, kTinyVocab}, {8, 2, 128, true});
  fail(ErrorCode::kInvalidArgument, "there is no shape '{}'", name);
}

}  // namespace

ModelConfig shape_of(const std::string& name, int64_t layers) {
  ModelConfig c = named_shape(name);
  if (layers > 0) c.num_layers = layers;
  c.layer_is_moe.assign(static_cast<size_t>(c.num_layers), c.moe.num_experts > 0);
  return c;
}

std::string config_json(const ModelConfig& c) {
  OrderedJson json = {{"model_type", c.moe.num_experts > 0 ? "qwen3_moe" : "qwen3"},
                      {"vocab_size", c.vocab},
                      {"hidden_size", c.hidden},
                      {"intermediate_size", c.intermediate},
                      {"num_hidden_layers", c.num_layers},
                      {"num_attention_heads", c.num_heads},
                      {"num_key_value_heads", c.num_kv_heads},
                      {"head_dim", c.head_dim},
                      {"max_position_embeddings", c.max_position},
                      {"rms_norm_eps", 1e-6},
                      {"hidden_act", "silu"},
                      {"attention_bias", false},
                      {"rope_theta", c.rope.theta},
                      {"initializer_range", 0.02},
                      {"tie_word_embeddings", c.tied_embeddings}};
  if (c.moe.num_experts > 0) {
    json["num_experts"] = c.moe.num_experts;
    json["num_experts_per_tok"] = c.moe.top_k;
    json["moe_intermediate_size"] = c.moe.intermediate;
    json["norm_topk_prob"] = c.moe.norm_topk_prob;
    json["decoder_sparse_step"] = 1;
    json["mlp_only_layers"] = OrderedJson::array();
  }
  return json.dump(2) + "\n";
}

QuantizationPlan usual_plan(const ModelSpec& spec, int64_t group_size) {
  return plan_quantization(spec.table, default_targets(spec.config), 4, group_size);
}

void randomize(const ModelSpec& spec, ResidentWeights& weights) {
  const auto device = at::TensorOptions().device(
      weights.device() == DeviceKind::kCpu ? at::Device(at::kCPU) : at::Device(at::kCUDA));
  // from_blob finds out which GPU the memory is on.
  const auto tensor = [&device](void* data, int64_t count, at::ScalarType type) {
    return at::from_blob(data, {count}, device.dtype(type));
  };
  for (int64_t p = 0; p < spec.table.size(); ++p) {
    const ParameterSpec& parameter = spec.table.at(p);
    StoredParameter& stored = weights.stored(p);
    const double width = std::sqrt(static_cast<double>(parameter.cols));
    if (!stored.words.empty()) {
      tensor(stored.words.data(), static_cast<int64_t>(stored.words.size()), at::kInt).random_();
      tensor(stored.scale.data(), static_cast<int64_t>(stored.scale.size()), at::kBFloat16)
          .fill_(0.25 / width);
    } else if (!stored.bf16.empty()) {
      const at::Tensor values = tensor(stored.bf16.data(), parameter.num_elements(), at::kBFloat16);
      if (parameter.is_vector()) {
        values.fill_(1.0);
      } else {
        values.normal_(0.0, 1.0 / width);
      }
    }
  }
}

std::shared_ptr<ResidentWeights> random_weights(const ModelSpec& spec, const QuantizationPlan& plan,
                                                DeviceKind device) {
  auto weights = std::make_shared<ResidentWeights>(spec.table, plan, device);
  randomize(spec, *weights);
  return weights;
}

}  // namespace nibble
