#include "core/checkpoint/quantization_config.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "core/base/fail.h"
#include "core/checkpoint/module_pattern.h"

namespace nibble {
namespace {

constexpr size_t kMaxIgnored = 200'000;
constexpr size_t kMaxPattern = 512;

[[noreturn]] void refuse(const std::string& what, const std::string& field, const Json& value) {
  fail(ErrorCode::kInvalidArgument, "{}: quantization_config.{} = {} is not supported", what, field,
       value.dump());
}

void want(const Json& object, const std::string& key, const Json& value, const std::string& what) {
  if (object.contains(key) && !object[key].is_null() && object[key] != value)
    refuse(what, key, object[key]);
}

void want_null_or_absent(const Json& object, const std::string& key, const std::string& what) {
  if (object.contains(key) && !object[key].is_null()) refuse(what, key, object[key]);
}

void want_empty_or_absent(const Json& object, const std::string& key, const std::string& what) {
  if (object.contains(key) && !object[key].empty()) refuse(what, key, object[key]);
}

// What is not known might change the weights, so it is not ignored. Keys of old files that say
// nothing (null) are no loss.
void refuse_other_keys(const Json& object, std::initializer_list<std::string_view> known,
                       const std::string& prefix, const std::string& what) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end() || value.is_null()) continue;
    fail(ErrorCode::kInvalidArgument,
         "{}: quantization_config.{}{} = {} is unknown to Nibble; it might change the weights, so "
         "it is not ignored",
         what, prefix, key, value.dump().substr(0, 200));
  }
}

const Json& member(const Json& object, const std::string& key, const std::string& what) {
  if (!object.is_object() || !object.contains(key)) {
    fail(ErrorCode::kInvalidArgument, "{}: quantization_config lacks '{}'", what, key);
  }
  return object[key];
}

void parse_weights(const Json& weights, const std::string& what, QuantizationConfig& config) {
  const Json& bits = member(weights, "num_bits", what);
  if (bits != 4 && bits != 8) refuse(what, "weights.num_bits", bits);
  config.bits = bits.get<int>();
  want(weights, "type", "int", what);
  want(weights, "symmetric", true, what);
  want(weights, "strategy", "group", what);
  want(weights, "dynamic", false, what);
  const Json& group = member(weights, "group_size", what);
  if (group != 32 && group != 64 && group != 128) refuse(what, "weights.group_size", group);
  config.group_size = group.get<int64_t>();
  want_null_or_absent(weights, "block_structure", what);
  want(weights, "scale_dtype", "torch.bfloat16", what);
  // How scales were found (observer) and the type of zero points that a symmetric grid has not.
  refuse_other_keys(
      weights,
      {"num_bits", "type", "symmetric", "strategy", "dynamic", "group_size", "block_structure",
       "actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"},
      "weights.", what);
  // "static"/"weight" act-order leaves the layout as it is; only "group" stores indices.
  if (weights.contains("actorder") && weights["actorder"] == "group") {
    refuse(what, "weights.actorder", weights["actorder"]);
  }
}

}  // namespace

bool QuantizationConfig::ignores(const std::string& module) const {
  for (const std::string& entry : ignore) {
    if (entry == module) return true;
    if (entry.starts_with("re:") && matches_module_pattern(entry.substr(3), module)) return true;
  }
  return false;
}

void check_ignore_entry(const std::string& entry) {
  if (entry.size() > kMaxPattern) {
    fail(ErrorCode::kInvalidArgument, "ignore entry '{}...' is longer than {} characters",
         entry.substr(0, 60), kMaxPattern);
  }
  if (entry.starts_with("re:")) (void)matches_module_pattern(entry.substr(3), "");
}

std::optional<QuantizationConfig> parse_quantization_config(const Json& model_config,
                                                            const std::string& what) {
  if (!model_config.contains("quantization_config") ||
      model_config["quantization_config"].is_null()) {
    return std::nullopt;
  }
  const Json& root = model_config["quantization_config"];
  if (member(root, "quant_method", what) != "compressed-tensors") {
    refuse(what, "quant_method", root["quant_method"]);
  }
  if (member(root, "format", what) != "pack-quantized") refuse(what, "format", root["format"]);
  want_null_or_absent(root, "kv_cache_scheme", what);
  want_empty_or_absent(root, "sparsity_config", what);
  want_empty_or_absent(root, "transform_config", what);
  refuse_other_keys(
      root,
      {"quant_method", "format", "kv_cache_scheme", "sparsity_config", "transform_config",
       "config_groups", "ignore", "quantization_status", "global_compression_ratio", "version"},
      "", what);
  const Json& groups = member(root, "config_groups", what);
  if (!groups.is_object() || groups.size() != 1) refuse(what, "config_groups", groups);
  const Json& group = groups.front();
  if (member(group, "targets", what) != Json::array({"Linear"})) {
    refuse(what, "config_groups.targets", group["targets"]);
  }
  want_null_or_absent(group, "input_activations", what);
  want_null_or_absent(group, "output_activations", what);
  want(group, "format", "pack-quantized", what);
  refuse_other_keys(group,
                    {"targets", "weights", "input_activations", "output_activations", "format"},
                    "config_groups.", what);
  QuantizationConfig config;
  parse_weights(member(group, "weights", what), what, config);
  const Json ignore = root.value("ignore", Json::array());
  if (!ignore.is_array() || ignore.size() > kMaxIgnored) refuse(what, "ignore", "list");
  for (const Json& entry : ignore) {
    if (!entry.is_string()) refuse(what, "ignore", entry);
    check_ignore_entry(entry.get<std::string>());
    config.ignore.push_back(entry.get<std::string>());
  }
  return config;
}

OrderedJson quantization_config_json(const QuantizationConfig& config) {
  const OrderedJson weights = {{"num_bits", config.bits},
                               {"type", "int"},
                               {"symmetric", true},
                               {"strategy", "group"},
                               {"group_size", config.group_size},
                               {"dynamic", false},
                               {"actorder", nullptr},
                               {"block_structure", nullptr},
                               {"observer", "minmax"},
                               {"observer_kwargs", OrderedJson::object()}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"kv_cache_scheme", nullptr},
          {"ignore", config.ignore},
          {"config_groups",
           {{"group_0",
             {{"targets", OrderedJson::array({"Linear"})},
              {"input_activations", nullptr},
              {"output_activations", nullptr},
              {"weights", weights}}}}}};
}

}  // namespace nibble
