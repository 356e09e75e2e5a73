#include "core/spec/model_config.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>

#include "core/base/fail.h"

namespace nibble {
namespace {

// Fields that say nothing about the computation.
constexpr std::array kHarmless = {"bos_token_id",
                                  "eos_token_id",
                                  "sep_token_id",
                                  "unk_token_id",
                                  "initializer_range",
                                  "dtype",
                                  "torch_dtype",
                                  "transformers_version",
                                  "use_cache",
                                  "router_aux_loss_coef",
                                  "output_router_logits",
                                  "_name_or_path",
                                  "_attn_implementation",
                                  "is_llama_config",
                                  "transformers.js_config",
                                  "max_window_layers",
                                  "rope_interleaved",
                                  "unsloth_version",
                                  "id2label",
                                  "label2id",
                                  "return_dict",
                                  "output_hidden_states",
                                  "output_attentions",
                                  "quantization_config",
                                  "_attn_implementation_autoset",
                                  "unsloth_fixed",
                                  "chunk_size_feed_forward",
                                  "problem_type",
                                  "is_encoder_decoder",
                                  "tokenizer_class"};

/// Reads fields of one JSON object and remembers which were read.
class Fields {
 public:
  Fields(const Json& object, std::string what) : object_(object), what_(std::move(what)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }

  int64_t positive(const char* key, int64_t limit) {
    const Json& value = required(key);
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > limit) {
      fail(ErrorCode::kInvalidArgument, "{}: {} = {}; want an integer from 1 to {}", what_, key,
           value.dump(), limit);
    }
    return value.get<int64_t>();
  }
  int64_t positive_or(const char* key, int64_t limit, int64_t fallback) {
    seen_.insert(key);
    return has(key) ? positive(key, limit) : fallback;
  }
  double number(const char* key) {
    const Json& value = required(key);
    if (!value.is_number() || !(value.get<double>() > 0.0)) {
      fail(ErrorCode::kInvalidArgument, "{}: {} = {}; want a number > 0", what_, key, value.dump());
    }
    return value.get<double>();
  }
  bool flag_or(const char* key, bool fallback) {
    seen_.insert(key);
    if (!has(key)) return fallback;
    if (!object_[key].is_boolean()) {
      fail(ErrorCode::kInvalidArgument, "{}: {} = {}; want true or false", what_, key,
           object_[key].dump());
    }
    return object_[key].get<bool>();
  }
  /// Accepts the field only if absent, null or equal to `value`.
  void want(const char* key, const Json& value) {
    seen_.insert(key);
    if (has(key) && object_[key] != value) {
      fail(ErrorCode::kInvalidArgument, "{}: {} = {} is not implemented (only {})", what_, key,
           object_[key].dump(), value.dump());
    }
  }
  const Json& raw(const char* key) {
    seen_.insert(key);
    return object_[key];
  }
  void ignore(const char* key) { seen_.insert(key); }
  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      const bool harmless = std::find(kHarmless.begin(), kHarmless.end(), key) != kHarmless.end();
      if (harmless || seen_.contains(key) || value.is_null()) continue;
      fail(ErrorCode::kInvalidArgument,
           "{}: field '{}' = {} is unknown to Nibble; it might change the result, so it is not "
           "ignored",
           what_, key, value.dump());
    }
  }
  const std::string& what() const { return what_; }

 private:
  const Json& required(const char* key) {
    seen_.insert(key);
    if (!has(key)) fail(ErrorCode::kInvalidArgument, "{}: field '{}' is missing", what_, key);
    return object_[key];
  }
  const Json& object_;
  std::string what_;
  std::set<std::string> seen_;
};

void parse_rope_kind(const Json& object, const std::string& what, RopeConfig& rope) {
  if (!object.is_object()) fail(ErrorCode::kInvalidArgument, "{}: not an object", what);
  Fields fields(object, what);
  const char* kind_key = fields.has("rope_type") ? "rope_type" : "type";
  fields.ignore("rope_type");
  fields.ignore("type");
  const std::string kind = fields.has(kind_key) && object[kind_key].is_string()
                               ? object[kind_key].get<std::string>()
                               : std::string("default");
  if (fields.has("rope_theta")) rope.theta = fields.number("rope_theta");
  if (kind == "llama3") {
    rope.llama3 = true;
    rope.factor = fields.number("factor");
    rope.low_freq_factor = fields.number("low_freq_factor");
    rope.high_freq_factor = fields.number("high_freq_factor");
    rope.original_max_position = fields.number("original_max_position_embeddings");
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      fail(ErrorCode::kInvalidArgument, "{}: high_freq_factor must exceed low_freq_factor", what);
    }
  } else if (kind != "default") {
    fail(ErrorCode::kUnimplemented, "{}: rope type '{}' is not implemented (default, llama3)", what,
         kind);
  }
  fields.finish();
}

void parse_rope(Fields& fields, RopeConfig& rope) {
  if (fields.has("rope_theta")) rope.theta = fields.number("rope_theta");
  fields.want("partial_rotary_factor", 1.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    fields.ignore(key);
    if (fields.has(key)) {
      parse_rope_kind(fields.raw(key), fmt::format("{}, {}", fields.what(), key), rope);
    }
  }
}

void parse_moe(Fields& fields, ModelConfig& config) {
  const char* experts_key = fields.has("num_local_experts") ? "num_local_experts" : "num_experts";
  fields.ignore("num_experts");
  if (fields.has("num_experts") && fields.has("num_local_experts") &&
      fields.raw("num_experts") != fields.raw("num_local_experts")) {
    fail(ErrorCode::kInvalidArgument, "{}: num_experts = {}, but num_local_experts = {}",
         fields.what(), fields.raw("num_experts").dump(), fields.raw("num_local_experts").dump());
  }
  config.moe.num_experts = fields.positive(experts_key, 65535);
  config.moe.top_k = fields.positive("num_experts_per_tok", config.moe.num_experts);
  config.moe.intermediate = fields.positive("moe_intermediate_size", 1 << 20);
  config.moe.norm_topk_prob = fields.flag_or("norm_topk_prob", false);
  const int64_t step = fields.positive_or("decoder_sparse_step", 4096, 1);
  std::set<int64_t> dense_layers;
  if (fields.has("mlp_only_layers")) {
    for (const Json& layer : fields.raw("mlp_only_layers")) {
      if (!layer.is_number_integer()) {
        fail(ErrorCode::kInvalidArgument, "{}: mlp_only_layers is not a list of integers",
             fields.what());
      }
      dense_layers.insert(layer.get<int64_t>());
    }
  }
  fields.ignore("mlp_only_layers");
  // Transformers' Qwen3MoeDecoderLayer: sparse unless listed, every decoder_sparse_step-th layer.
  for (int64_t i = 0; i < config.num_layers; ++i) {
    config.layer_is_moe[static_cast<size_t>(i)] = !dense_layers.contains(i) && (i + 1) % step == 0;
  }
}

void check_shape(const ModelConfig& config, const std::string& what) {
  if (config.num_heads % config.num_kv_heads != 0) {
    fail(ErrorCode::kInvalidArgument, "{}: {} heads cannot share {} key-value heads", what,
         config.num_heads, config.num_kv_heads);
  }
  for (const auto& [name, size] :
       {std::pair{"hidden_size", config.hidden}, std::pair{"head_dim", config.head_dim},
        std::pair{"intermediate_size", config.intermediate},
        std::pair{"moe_intermediate_size", config.moe.intermediate}}) {
    if (size % 16 != 0) {
      fail(ErrorCode::kUnimplemented,
           "{}: {} = {} is not a multiple of 16, which the kernels' summation order needs", what,
           name, size);
    }
  }
  if (config.head_dim > 256) {
    fail(ErrorCode::kUnimplemented, "{}: head_dim = {} is larger than 256", what, config.head_dim);
  }
}

}  // namespace

std::string_view architecture_name(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kQwen3:
      return "qwen3";
    case Architecture::kQwen3Moe:
      return "qwen3_moe";
  }
  return "unknown";
}

int64_t ModelConfig::num_moe_layers() const {
  return std::count(layer_is_moe.begin(), layer_is_moe.end(), true);
}

// The class that wrote the weights must be the one that model_type stands for.
void check_architectures(Fields& fields, const std::string& type) {
  if (!fields.has("architectures")) return;
  const std::map<std::string, std::string> classes = {{"llama", "LlamaForCausalLM"},
                                                      {"qwen3", "Qwen3ForCausalLM"},
                                                      {"qwen3_moe", "Qwen3MoeForCausalLM"}};
  const Json& given = fields.raw("architectures");
  const Json wanted = Json::array({classes.at(type)});
  if (given == wanted) return;
  fail(ErrorCode::kInvalidArgument,
       "{}: architectures is {}, but model_type '{}' is that of {}; correct the one that is wrong",
       fields.what(), given.dump(), type, wanted.dump());
}

ModelConfig parse_model_config(const Json& json, const std::string& what) {
  if (!json.is_object()) fail(ErrorCode::kInvalidArgument, "{} is not a JSON object", what);
  Fields fields(json, what);
  ModelConfig config;
  fields.ignore("model_type");
  const std::string type = fields.has("model_type") && json["model_type"].is_string()
                               ? json["model_type"].get<std::string>()
                               : std::string("(none)");
  if (type == "llama") {
    config.architecture = Architecture::kLlama;
  } else if (type == "qwen3") {
    config.architecture = Architecture::kQwen3;
  } else if (type == "qwen3_moe") {
    config.architecture = Architecture::kQwen3Moe;
  } else {
    fail(ErrorCode::kUnimplemented,
         "{}: model_type '{}' is not supported; supported are llama, qwen3, qwen3_moe", what, type);
  }
  check_architectures(fields, type);
  fields.want("pretraining_tp", 1);
  if (fields.has("auto_map")) {
    fail(ErrorCode::kInvalidArgument,
         "{}: 'auto_map' asks for code from the checkpoint, which Nibble never runs", what);
  }
  config.qk_norm = config.architecture != Architecture::kLlama;
  config.vocab = fields.positive("vocab_size", 1 << 24);
  config.hidden = fields.positive("hidden_size", 1 << 20);
  config.intermediate = fields.positive("intermediate_size", 1 << 22);
  config.num_layers = fields.positive("num_hidden_layers", 4096);
  config.num_heads = fields.positive("num_attention_heads", 4096);
  config.num_kv_heads = fields.positive_or("num_key_value_heads", 4096, config.num_heads);
  config.head_dim = fields.positive_or("head_dim", 1024, config.hidden / config.num_heads);
  config.max_position = fields.positive_or("max_position_embeddings", int64_t{1} << 40, 2048);
  config.rms_eps = static_cast<float>(fields.number("rms_norm_eps"));
  config.tied_embeddings = fields.flag_or("tie_word_embeddings", false);
  fields.ignore("pad_token_id");
  const Json pad = json.value("pad_token_id", Json(nullptr));
  if (pad.is_number_integer() && pad.get<int64_t>() < config.vocab) config.pad_token = pad;
  config.layer_is_moe.assign(static_cast<size_t>(config.num_layers), false);
  parse_rope(fields, config.rope);
  if (config.architecture == Architecture::kQwen3Moe) parse_moe(fields, config);
  fields.want("hidden_act", "silu");
  fields.want("attention_bias", false);
  fields.want("mlp_bias", false);
  fields.want("attention_dropout", 0.0);
  fields.want("use_sliding_window", false);
  // Qwen configs carry a window size beside use_sliding_window: false; then it means nothing.
  if (json.value("use_sliding_window", Json(nullptr)) == false) fields.ignore("sliding_window");
  if (fields.has("layer_types")) {
    const size_t count = fields.raw("layer_types").size();
    if (count != static_cast<size_t>(config.num_layers)) {
      fail(ErrorCode::kInvalidArgument, "{}: layer_types has {} entries for num_hidden_layers = {}",
           what, count, config.num_layers);
    }
    for (const Json& layer : fields.raw("layer_types")) {
      if (layer != "full_attention") {
        fail(ErrorCode::kUnimplemented,
             "{}: layer_types has {}; only full_attention is implemented", what, layer.dump());
      }
    }
  }
  if (fields.has(kLoraKey)) config.lora = parse_lora_shape(fields.raw(kLoraKey), what);
  fields.finish();
  check_shape(config, what);
  return config;
}

ModelConfig value_model(ModelConfig config) {
  config.gives_values = true;
  config.tied_embeddings = false;
  return config;
}

std::optional<std::string_view> computed_difference(const ModelConfig& a, const ModelConfig& b) {
  const auto scaling = [](const RopeConfig& r) {
    return r.llama3 ? std::tuple{true, r.factor, r.low_freq_factor, r.high_freq_factor,
                                 r.original_max_position}
                    : std::tuple{false, 1.0, 1.0, 1.0, 1.0};
  };
  if (a.architecture != b.architecture) return "model_type";
  if (a.num_heads != b.num_heads) return "num_attention_heads";
  if (a.num_kv_heads != b.num_kv_heads) return "num_key_value_heads";
  if (a.rms_eps != b.rms_eps) return "rms_norm_eps";
  if (a.rope.theta != b.rope.theta) return "rope_theta";
  if (scaling(a.rope) != scaling(b.rope)) return "rope_scaling";
  if (a.tied_embeddings != b.tied_embeddings) return "tie_word_embeddings";
  if (a.moe.top_k != b.moe.top_k) return "num_experts_per_tok";
  if (a.moe.norm_topk_prob != b.moe.norm_topk_prob) return "norm_topk_prob";
  return std::nullopt;
}

}  // namespace nibble
