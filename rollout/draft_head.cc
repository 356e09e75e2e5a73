#include "rollout/draft_head.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "core/base/context.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/checkpoint/hf_directory.h"
#include "core/checkpoint/safetensors.h"
#include "rollout/engine/head_weights.h"

namespace nibble {
namespace {

constexpr const char* kModelType = "nibble_draft_head";
constexpr int64_t kFormatVersion = 1;
constexpr uint64_t kRandomSeed = 1;
constexpr std::string_view kProjection = "eh_proj.weight";

// Reads the keys of a head's config.json and remembers them.
class HeadConfig {
 public:
  explicit HeadConfig(const Json& object) : object_(object) {
    if (!object.is_object()) fail(ErrorCode::kInvalidArgument, "config.json is not an object");
  }
  void want(const char* key, const Json& value) {
    const Json& own = get(key);
    if (own == value) return;
    fail(ErrorCode::kInvalidArgument, "config.json: {} is {}; want {}", key, own.dump(),
         value.dump());
  }
  void read(const char* key, int64_t& value) {
    if (get(key).is_null()) return;
    constexpr int64_t kMost = 1 << 22;
    const Json& own = get(key);
    if (!own.is_number_integer() || own.get<int64_t>() < 1 || own.get<int64_t>() > kMost) {
      fail(ErrorCode::kInvalidArgument, "config.json: {} is {}; want an integer from 1 to {}", key,
           own.dump(), kMost);
    }
    value = own.get<int64_t>();
  }
  double number(const char* key, double otherwise) {
    const Json& own = get(key);
    if (own.is_null()) return otherwise;
    if (!own.is_number() || !(own.get<double>() > 0.0)) {
      fail(ErrorCode::kInvalidArgument, "config.json: {} is {}; want a number > 0", key,
           own.dump());
    }
    return own.get<double>();
  }
  void read(const char* key, bool& value) {
    const Json& own = get(key);
    if (own.is_null()) return;
    if (!own.is_boolean()) {
      fail(ErrorCode::kInvalidArgument, "config.json: {} is {}; want true or false", key,
           own.dump());
    }
    value = own.get<bool>();
  }
  void finish() const {
    for (const auto& [key, value] : object_.items()) {
      if (seen_.contains(key)) continue;
      fail(ErrorCode::kInvalidArgument, "config.json: unknown key '{}'", key);
    }
  }

 private:
  const Json& get(const char* key) {
    static const Json kNull;
    seen_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? kNull : *found;
  }
  const Json& object_;
  std::set<std::string> seen_;
};

ModelSpec parse_head(const Json& json, const ModelSpec& model) {
  ModelConfig config = draft_head_spec(model.config).config;
  HeadConfig fields(json);
  fields.want("model_type", kModelType);
  fields.want("format_version", kFormatVersion);
  fields.want("vocab_size", config.vocab);
  fields.want("hidden_size", config.hidden);
  fields.read("intermediate_size", config.intermediate);
  fields.read("num_attention_heads", config.num_heads);
  fields.read("num_key_value_heads", config.num_kv_heads);
  fields.read("head_dim", config.head_dim);
  fields.read("qk_norm", config.qk_norm);
  config.rms_eps = static_cast<float>(fields.number("rms_norm_eps", config.rms_eps));
  config.rope.theta = fields.number("rope_theta", config.rope.theta);
  fields.finish();
  if (config.num_heads % config.num_kv_heads != 0 || config.head_dim % 16 != 0 ||
      config.head_dim > 256 || config.intermediate % 16 != 0) {
    fail(ErrorCode::kInvalidArgument,
         "config.json: {} heads of {} (a multiple of 16, at most 256), {} of keys and values (a "
         "divisor), intermediate_size {} (a multiple of 16)",
         config.num_heads, config.head_dim, config.num_kv_heads, config.intermediate);
  }
  return make_model_spec(config);
}

OrderedJson config_of(const ModelConfig& config) {
  return {{"model_type", kModelType},
          {"format_version", kFormatVersion},
          {"vocab_size", config.vocab},
          {"hidden_size", config.hidden},
          {"intermediate_size", config.intermediate},
          {"num_attention_heads", config.num_heads},
          {"num_key_value_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"qk_norm", config.qk_norm},
          {"rms_norm_eps", static_cast<double>(config.rms_eps)},
          {"rope_theta", config.rope.theta}};
}

// A parameter's name in a head's files, without prefix.
std::string stored_module(const ModelSpec& head, int64_t parameter) {
  constexpr std::string_view kLayer = "model.layers.0.";
  constexpr std::string_view kModel = "model.";
  if (parameter == head.table.final_norm) return "shared_head.norm";
  const std::string& module = head.table.at(parameter).module;
  return module.substr((module.starts_with(kLayer) ? kLayer : kModel).size());
}

std::string prefix_of(const HfDirectory& directory) {
  std::vector<std::string> found;
  for (const TensorInfo& tensor : directory.tensors()) {
    if (tensor.name.ends_with(kProjection)) found.push_back(tensor.name);
  }
  if (found.size() != 1) {
    fail(ErrorCode::kInvalidArgument, "'{}' has {} tensors '..{}'; a draft head has one",
         directory.path().string(), found.size(), kProjection);
  }
  return found[0].substr(0, found[0].size() - kProjection.size());
}

std::vector<StoredParameter> load_own(const HfDirectory& directory, const ModelSpec& head) {
  const std::string prefix = prefix_of(directory);
  std::set<std::string> known = {prefix + "embed_tokens.weight",
                                 prefix + "shared_head.head.weight"};
  std::vector<StoredParameter> own;
  for (int64_t p = 0; p < head.table.size(); ++p) {
    StoredParameter& stored = own.emplace_back();
    if (is_of_model(head.table, p)) continue;
    ParameterSpec parameter = head.table.at(p);
    parameter.module = prefix + stored_module(head, p);
    known.insert(parameter.name());
    stored.bf16 = Array<uint16_t>(std::span<const uint16_t>(load_bf16(directory, parameter)));
  }
  for (const TensorInfo& tensor : directory.tensors()) {
    if (known.contains(tensor.name)) continue;
    fail(ErrorCode::kInvalidArgument, "'{}' has a tensor '{}' that this head does not have",
         directory.path().string(), tensor.name);
  }
  return own;
}

}  // namespace

std::shared_ptr<const DraftHead> load_draft_head(const std::string& what, const std::string& head,
                                                 const ModelSpec& model) {
  return with_context(what, [&]() -> std::shared_ptr<const DraftHead> {
    if (head == "random") {
      auto made = std::make_shared<DraftHead>(draft_head_spec(model.config));
      made->weights = random_head_weights(made->spec.table, kRandomSeed);
      return made;
    }
    const HfDirectory directory(head);
    auto loaded = std::make_shared<DraftHead>(
        with_context(head, [&] { return parse_head(directory.config(), model); }));
    loaded->weights = own_head_weights(loaded->spec.table, load_own(directory, loaded->spec));
    return loaded;
  });
}

void save_draft_head(const std::filesystem::path& directory, const ModelSpec& head,
                     const ResidentWeights& weights) {
  std::filesystem::create_directories(directory);
  std::vector<TensorInfo> tensors;
  std::vector<int64_t> parameters;
  for (int64_t p = 0; p < head.table.size(); ++p) {
    if (is_of_model(head.table, p)) continue;
    const ParameterSpec& parameter = head.table.at(p);
    std::vector<int64_t> shape = {parameter.cols};
    if (!parameter.is_vector()) shape.insert(shape.begin(), parameter.rows);
    tensors.push_back({stored_module(head, p) + ".weight", DType::kBf16, std::move(shape)});
    parameters.push_back(p);
  }
  SafetensorsWriter writer(directory / "model.safetensors", tensors, {});
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Array<uint16_t>& values = weights.parameters()[static_cast<size_t>(parameters[i])].bf16;
    writer.write(tensors[i].name, std::as_bytes(std::span(values.data(), values.size())));
  }
  writer.finish();
  write_file_atomically(directory / "config.json", config_of(head.config).dump(2) + "\n");
}

std::shared_ptr<const ops::WeightSource> head_weights(std::shared_ptr<const DraftHead> head) {
  const ops::WeightSource* weights = head->weights.get();
  return {std::move(head), weights};
}

std::shared_ptr<const ops::WeightSource> head_weights_on_gpu(
    std::shared_ptr<const DraftHead> head) {
  std::vector<StoredParameter> own;
  for (const StoredParameter& stored : head->weights->parameters()) {
    own.push_back(stored.to(DeviceKind::kCuda));
  }
  auto copy = std::make_shared<DraftHead>(head->spec);
  copy->weights = own_head_weights(copy->spec.table, std::move(own), DeviceKind::kCuda);
  return head_weights(std::move(copy));
}

}  // namespace nibble
