#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/config/fields.h"

namespace nibble {

/// Where each value of a loaded configuration was written, so that a check across several keys
/// can say which lines contradict each other.
class ConfigSource {
 public:
  /// "train.yaml:12", "--set a.b=c", or "default". `key_path` is dotted: "rollout.sampling.top_p".
  std::string where(std::string_view key_path) const;
  /// True if the file or an override gave this key a value.
  bool is_set(std::string_view key_path) const;
  void record(std::string key_path, std::string where);

 private:
  std::map<std::string, std::string, std::less<>> places_;
};

template <typename Config>
struct LoadedConfig {
  Config config;
  ConfigSource source;
};

/// A key whose value differs between two configurations; values as in YAML.
struct ChangedValue {
  std::string key;  ///< dotted path
  std::string before;
  std::string after;
};

namespace detail {
ConfigSource read_fields(const Fields& fields, std::string_view text, std::string_view name,
                         std::span<const std::string> overrides);
std::string read_config_text(const std::filesystem::path& file);
std::string dump_fields(const Fields& fields, const Fields& defaults);
std::vector<ChangedValue> changed_fields(const Fields& fields, const Fields& before);
std::string fields_reference(const Fields& defaults);
std::string fields_json_schema(const Fields& defaults, std::string_view title);
}  // namespace detail

/// Reads YAML text called `name` into a Config that starts at its defaults, then applies
/// `overrides` ("a.b=c", the value in YAML) in order. Throws Error{kInvalidArgument} with name,
/// line and full key path for the first mistake: unknown or duplicate key (with the nearest known
/// one), wrong type, a value outside its limits, an anchor, alias or tag, more than 1 MiB.
template <typename Config>
LoadedConfig<Config> parse_config(std::string_view text, std::string_view name,
                                  std::span<const std::string> overrides = {}) {
  LoadedConfig<Config> loaded{};
  loaded.source = detail::read_fields(fields_of(loaded.config), text, name, overrides);
  return loaded;
}

/// parse_config of a file. Throws Error{kNotFound} if there is none.
template <typename Config>
LoadedConfig<Config> load_config(const std::filesystem::path& file,
                                 std::span<const std::string> overrides = {}) {
  return parse_config<Config>(detail::read_config_text(file), file.string(), overrides);
}

/// The whole configuration as YAML: every key with its value and, as a comment, unit, limits,
/// meaning and (where it differs) default. parse_config of the result gives the same values.
template <typename Config>
std::string dump_config(Config config) {
  Config defaults{};
  return detail::dump_fields(fields_of(config), fields_of(defaults));
}

/// All keys whose values are not those of `before`, in the order of the dump. A list of sections is
/// one value.
template <typename Config>
std::vector<ChangedValue> changed_values(Config config, Config before) {
  return detail::changed_fields(fields_of(config), fields_of(before));
}

/// Dotted paths of all keys whose values are not the defaults, in the order of the dump.
template <typename Config>
std::vector<std::string> changed_keys(Config config) {
  std::vector<std::string> keys;
  for (const ChangedValue& value : changed_values(std::move(config), Config{})) {
    keys.push_back(value.key);
  }
  return keys;
}

/// A Markdown page with one table per section.
template <typename Config>
std::string config_reference() {
  Config defaults{};
  return detail::fields_reference(fields_of(defaults));
}

/// A JSON schema (draft 2020-12) that accepts what parse_config accepts.
template <typename Config>
std::string config_json_schema(std::string_view title) {
  Config defaults{};
  return detail::fields_json_schema(fields_of(defaults), title);
}

}  // namespace nibble
