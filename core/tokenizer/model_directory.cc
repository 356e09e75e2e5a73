#include "core/tokenizer/model_directory.h"

#include <charconv>
#include <limits>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/json.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = 64 << 20;
constexpr int64_t kMaxTemplateBytes = 1 << 20;

Json read_if_exists(const fs::path& path) {
  return fs::exists(path) ? read_json_file(path, kMaxConfigBytes) : Json::object();
}

[[noreturn]] void refuse(const fs::path& path, std::string_view key, std::string_view want) {
  fail(ErrorCode::kInvalidArgument, "{}: '{}' must be {}", path.string(), key, want);
}

void read_eos_ids(const fs::path& path, std::vector<int32_t>& ids) {
  const Json json = read_if_exists(path);
  if (!json.is_object()) refuse(path, "the file", "a JSON object");
  const auto eos = json.find("eos_token_id");
  if (eos == json.end() || eos->is_null()) return;
  const auto add = [&](const Json& id) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      refuse(path, "eos_token_id", "a token id or a list of them");
    }
    ids.push_back(id.get<int32_t>());
  };
  if (!eos->is_array()) return add(*eos);
  for (const Json& id : *eos) add(id);
}

void read_special_tokens(const Json& json, const fs::path& path, TokenizerConfig& config) {
  for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    const auto value = json.find(name);
    if (value == json.end() || value->is_null()) continue;
    const Json* content = &*value;
    if (value->is_object() && value->contains("content")) content = &(*value)["content"];
    if (!content->is_string()) refuse(path, name, "a string or an object with \"content\"");
    config.special_tokens[name] = content->get<std::string>();
  }
}

void read_chat_templates(const Json& json, const fs::path& path, TokenizerConfig& config) {
  const auto value = json.find("chat_template");
  if (value == json.end() || value->is_null()) return;
  if (value->is_string()) {
    config.chat_templates["default"] = value->get<std::string>();
    return;
  }
  if (!value->is_array()) refuse(path, "chat_template", "a string or a list of named templates");
  for (const Json& entry : *value) {
    const bool named = entry.is_object() && entry.contains("name") && entry["name"].is_string() &&
                       entry.contains("template") && entry["template"].is_string();
    if (!named) refuse(path, "chat_template", "a list of {\"name\", \"template\"}");
    config.chat_templates[entry["name"].get<std::string>()] = entry["template"].get<std::string>();
  }
}

void read_added_tokens(const Json& json, const fs::path& path, TokenizerConfig& config) {
  const auto value = json.find("added_tokens_decoder");
  if (value == json.end() || value->is_null()) return;
  if (!value->is_object()) refuse(path, "added_tokens_decoder", "an object");
  for (const auto& [key, token] : value->items()) {
    int32_t id = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || id < 0 ||
        !token.is_object() || !token.contains("content") || !token["content"].is_string()) {
      refuse(path, "added_tokens_decoder", "an object of ids with \"content\"");
    }
    config.added_tokens.emplace_back(id, token["content"].get<std::string>());
  }
}

}  // namespace

TokenizerConfig read_tokenizer_config(const fs::path& directory) {
  TokenizerConfig config;
  const fs::path path = directory / "tokenizer_config.json";
  const Json json = read_if_exists(path);
  if (!json.is_object()) refuse(path, "the file", "a JSON object");
  read_special_tokens(json, path, config);
  read_chat_templates(json, path, config);
  read_added_tokens(json, path, config);
  const fs::path jinja = directory / "chat_template.jinja";
  if (fs::exists(jinja)) config.chat_templates["default"] = read_file(jinja, kMaxTemplateBytes);
  read_eos_ids(directory / "config.json", config.eos_ids);
  read_eos_ids(directory / "generation_config.json", config.eos_ids);
  return config;
}

}  // namespace nibble
