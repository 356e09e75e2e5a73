#include <algorithm>
#include <charconv>

#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/config/config.h"
#include "core/config/nearest.h"
#include "core/config/scalar.h"
#include "core/config/yaml_tree.h"

namespace nibble {
namespace {

std::string join_path(std::string_view prefix, std::string_view key) {
  return prefix.empty() ? std::string(key) : fmt::format("{}.{}", prefix, key);
}

/// Appends the dotted path of every key below `prefix`. A list of sections holds no fixed keys.
void collect_paths(const Fields& fields, const std::string& prefix, std::vector<std::string>& out) {
  for (const Field& field : fields) {
    const std::string path = join_path(prefix, field.key);
    out.push_back(path);  // growing, `out` moves its elements: none may be the recursion's prefix
    if (field.kind == Field::Kind::kSection) collect_paths(field.section, path, out);
  }
}

/// Copies one YAML tree, or one override, into bound fields.
class Reader {
 public:
  Reader(const Fields& root, std::string_view name, ConfigSource& source)
      : root_(root), name_(name), source_(source) {}

  void read_section(const Fields& fields, const YamlNode& node, const std::string& path) {
    if (node.kind == YamlNode::Kind::kNull) return;  // a section with every line commented out
    if (node.kind != YamlNode::Kind::kMap) {
      refuse(node.line, path, "want a map of keys, got a {}",
             node.kind == YamlNode::Kind::kList ? "list" : "single value");
    }
    for (const YamlEntry& entry : node.map) {
      read_field(find(fields, entry.key, entry.line, path), entry.value,
                 join_path(path, entry.key));
    }
  }

  /// Applies "a.b=value"; in a list of sections, a number picks an existing element.
  void read_override(std::string_view key_path, const YamlNode& value) {
    const Fields* fields = &root_;
    Fields element;
    std::string path;
    while (true) {
      const size_t dot = std::min(key_path.find('.'), key_path.size());
      const Field& field = find(*fields, key_path.substr(0, dot), 1, path);
      path = join_path(path, field.key);
      if (dot == key_path.size()) return read_field(field, value, path);
      key_path.remove_prefix(dot + 1);
      if (field.kind == Field::Kind::kSection) {
        fields = &field.section;
      } else if (field.kind == Field::Kind::kSectionList) {
        Fields picked = pick_element(field, key_path, path);
        if (key_path.empty()) return read_section(picked, value, path);
        element = std::move(picked);
        fields = &element;
      } else {
        refuse(1, path, "this key holds a value, not a section");
      }
    }
  }

 private:
  template <typename... Args>
  [[noreturn]] void refuse(int line, std::string_view path, fmt::format_string<Args...> format,
                           Args&&... args) const {
    const std::string place = yaml_place(name_, line);
    const std::string message = fmt::format(format, std::forward<Args>(args)...);
    if (path.empty()) fail(ErrorCode::kInvalidArgument, "{}: {}", place, message);
    fail(ErrorCode::kInvalidArgument, "{}: {}: {}", place, path, message);
  }

  const Field& find(const Fields& fields, std::string_view key, int line,
                    const std::string& path) const {
    for (const Field& field : fields) {
      if (field.key == key) return field;
    }
    refuse(line, join_path(path, key), "unknown key; {}", advice(fields, key, path));
  }

  std::string advice(const Fields& fields, std::string_view key, const std::string& path) const {
    std::vector<std::string> keys;
    for (const Field& field : fields) keys.push_back(field.key);
    const std::string nearest = nearest_word(key, keys);
    if (!nearest.empty()) return fmt::format("did you mean '{}'?", join_path(path, nearest));
    std::vector<std::string> paths;
    collect_paths(root_, "", paths);
    for (const std::string& other : paths) {
      if (other == key || other.ends_with(fmt::format(".{}", key))) {
        return fmt::format("did you mean '{}'?", other);
      }
    }
    return fmt::format("known here: {}", fmt::join(keys, ", "));
  }

  void read_field(const Field& field, const YamlNode& node, const std::string& path) {
    using Kind = Field::Kind;
    if (field.kind == Kind::kSection) return read_section(field.section, node, path);
    source_.record(path, yaml_place(name_, node.line));
    if (field.kind == Kind::kScalar) return read_scalar(*field.scalar, field, node, path);
    if (field.kind == Kind::kOptional) {
      field.elements.clear();
      if (node.kind == YamlNode::Kind::kNull) return;
      return read_scalar(field.elements.append(), field, node, path);
    }
    if (node.kind != YamlNode::Kind::kList) refuse(node.line, path, "want a list, as in [a, b]");
    if (field.kind == Kind::kList) {
      field.elements.clear();
      for (size_t i = 0; i < node.list.size(); ++i) {
        read_scalar(field.elements.append(), field, node.list[i],
                    join_path(path, std::to_string(i)));
      }
    } else {
      field.section_elements.clear();
      for (size_t i = 0; i < node.list.size(); ++i) {
        read_section(field.section_elements.append(), node.list[i],
                     join_path(path, std::to_string(i)));
      }
    }
  }

  void read_scalar(const ScalarRef& target, const Field& field, const YamlNode& node,
                   const std::string& path) const {
    const std::string problem = assign_scalar(target, field.limits, node);
    if (problem.empty()) return;
    const std::string unit = field.unit.empty() ? "" : fmt::format(" (in {})", field.unit);
    refuse(node.line, path, "{}{}", problem, unit);
  }

  /// Takes the leading number off `key_path`, appends it to `path` and binds that element.
  Fields pick_element(const Field& field, std::string_view& key_path, std::string& path) const {
    const size_t dot = std::min(key_path.find('.'), key_path.size());
    size_t index = 0;
    const auto [end, error] = std::from_chars(key_path.data(), key_path.data() + dot, index);
    const size_t size = field.section_elements.size();
    if (error != std::errc() || end != key_path.data() + dot || index >= size) {
      refuse(1, path, "'{}' picks none of its {} elements; count from 0", key_path.substr(0, dot),
             size);
    }
    key_path.remove_prefix(std::min(dot + 1, key_path.size()));
    path = join_path(path, std::to_string(index));
    return field.section_elements.at(index);
  }

  const Fields& root_;
  const std::string_view name_;
  ConfigSource& source_;
};

}  // namespace

std::string ConfigSource::where(std::string_view key_path) const {
  const auto found = places_.find(key_path);
  return found == places_.end() ? "default" : found->second;
}

bool ConfigSource::is_set(std::string_view key_path) const { return places_.contains(key_path); }

void ConfigSource::record(std::string key_path, std::string where) {
  places_.insert_or_assign(std::move(key_path), std::move(where));
}

namespace detail {

std::string read_config_text(const std::filesystem::path& file) {
  return read_file(file, kMaxYamlBytes);
}

ConfigSource read_fields(const Fields& fields, std::string_view text, std::string_view name,
                         std::span<const std::string> overrides) {
  ConfigSource source;
  Reader(fields, name, source).read_section(fields, parse_yaml(text, name), "");
  for (const std::string& override_text : overrides) {
    const std::string override_name = "--set " + override_text;
    const size_t equals = override_text.find('=');
    if (equals == std::string::npos || equals == 0) {
      fail(ErrorCode::kInvalidArgument, "{}: want KEY=VALUE, as in rollout.top_p=0.9",
           override_name);
    }
    const YamlNode value =
        parse_yaml(std::string_view(override_text).substr(equals + 1), override_name);
    Reader(fields, override_name, source)
        .read_override(std::string_view(override_text).substr(0, equals), value);
  }
  return source;
}

}  // namespace detail
}  // namespace nibble
