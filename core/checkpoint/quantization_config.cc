#include "core/checkpoint/quantization_config.h"

#include <regex>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxIgnored = 200'000;
constexpr size_t kMaxPattern = 512;

[[noreturn]] void refuse(const std::string& what, const std::string& field, const Json& value) {
  fail(ErrorCode::kInvalidArgument, "{}: quantization_config.{} = {} is not supported", what, field,
       value.dump());
}

void want(const Json& object, const std::string& key, const Json& value, const std::string& what) {
  if (object.contains(key) && object[key] != value) refuse(what, key, object[key]);
}

void want_null_or_absent(const Json& object, const std::string& key, const std::string& what) {
  if (object.contains(key) && !object[key].is_null()) refuse(what, key, object[key]);
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
  // "static"/"weight" act-order leaves the layout as it is; only "group" stores indices.
  if (weights.contains("actorder") && weights["actorder"] == "group") {
    refuse(what, "weights.actorder", weights["actorder"]);
  }
}

}  // namespace

bool QuantizationConfig::ignores(const std::string& module) const {
  for (const std::string& entry : ignore) {
    if (entry == module) return true;
    if (entry.starts_with("re:")) {
      const std::regex pattern(entry.substr(3), std::regex::ECMAScript | std::regex::optimize);
      if (std::regex_search(module, pattern, std::regex_constants::match_continuous)) return true;
    }
  }
  return false;
}

void check_ignore_entry(const std::string& entry) {
  if (entry.size() > kMaxPattern) {
    fail(ErrorCode::kInvalidArgument, "ignore entry '{}...' is longer than {} characters",
         entry.substr(0, 60), kMaxPattern);
  }
  if (!entry.starts_with("re:")) return;
  try {
    const std::regex pattern(entry.substr(3), std::regex::ECMAScript);
  } catch (const std::regex_error& error) {
    fail(ErrorCode::kInvalidArgument, "ignore entry '{}' is no regular expression: {}", entry,
         error.what());
  }
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
  if (root.contains("sparsity_config") && !root["sparsity_config"].empty()) {
    refuse(what, "sparsity_config", root["sparsity_config"]);
  }
  const Json& groups = member(root, "config_groups", what);
  if (!groups.is_object() || groups.size() != 1) refuse(what, "config_groups", groups);
  const Json& group = groups.front();
  if (member(group, "targets", what) != Json::array({"Linear"})) {
    refuse(what, "config_groups.targets", group["targets"]);
  }
  want_null_or_absent(group, "input_activations", what);
  want_null_or_absent(group, "output_activations", what);
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
