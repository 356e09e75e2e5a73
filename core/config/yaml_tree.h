#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct YamlEntry;

/// A parsed YAML value with the line it stands on. Maps keep the order of the file.
struct YamlNode {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  int line = 1;            ///< from 1
  bool is_quoted = false;  ///< a scalar in quotes or a block scalar: never a number
  std::string text;        ///< kScalar
  std::vector<YamlNode> list;
  std::vector<YamlEntry> map;
};

struct YamlEntry {
  std::string key;
  int line = 1;
  YamlNode value;
};

constexpr int64_t kMaxYamlBytes = 1 << 20;

/// Parses one YAML document of at most 1 MiB, 32 levels and 65,536 values. Anchors, aliases, tags,
/// duplicate keys, keys that are not plain text, control characters and a second document are
/// refused. Throws Error{kInvalidArgument}; `name` starts the message, with the line unless
/// `name` is a command-line argument ("--set ...").
YamlNode parse_yaml(std::string_view text, std::string_view name);

/// "train.yaml:3", or just the name for a command-line argument.
std::string yaml_place(std::string_view name, int line);

}  // namespace nibble
