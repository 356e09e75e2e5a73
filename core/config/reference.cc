#include <cmath>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/config/config.h"
#include "core/config/scalar.h"

namespace nibble {
namespace {

/// A value whose type can be described; fills an empty list of a default object for that.
ScalarRef sample_of(const Field& field) {
  if (field.kind == Field::Kind::kScalar) return *field.scalar;
  return field.elements.size() > 0 ? field.elements.at(0) : field.elements.append();
}

std::string default_of(const Field& field) {
  if (field.kind == Field::Kind::kScalar) return scalar_to_yaml(*field.scalar);
  if (field.elements.size() == 0) return field.kind == Field::Kind::kOptional ? "none" : "[]";
  std::vector<std::string> items;
  for (size_t i = 0; i < field.elements.size(); ++i) {
    items.push_back(scalar_to_yaml(field.elements.at(i)));
  }
  if (field.kind == Field::Kind::kOptional) return items[0];
  return fmt::format("[{}]", fmt::join(items, ", "));
}

std::string escape_cell(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

void write_row(const Field& field, std::string& out) {
  const std::string standard = default_of(field);
  std::string type = scalar_type_name(sample_of(field));
  if (field.kind == Field::Kind::kList) type = fmt::format("list of {}", type);
  if (const std::string limits = field.limits.describe(); !limits.empty()) type += ", " + limits;
  out += fmt::format("| `{}` | {} | `{}` | {} | {} |\n", field.key, escape_cell(type), standard,
                     field.unit, escape_cell(field.help));
}

void write_tables(const Fields& fields, const std::string& path, std::string& out) {
  bool has_header = false;
  for (const Field& field : fields) {
    if (field.kind == Field::Kind::kSection || field.kind == Field::Kind::kSectionList) continue;
    if (!std::exchange(has_header, true)) {
      out += "\n| Key | Type | Default | Unit | Meaning |\n|---|---|---|---|---|\n";
    }
    write_row(field, out);
  }
  for (const Field& field : fields) {
    const bool is_list = field.kind == Field::Kind::kSectionList;
    if (field.kind != Field::Kind::kSection && !is_list) continue;
    const std::string inner = path.empty() ? field.key : fmt::format("{}.{}", path, field.key);
    out += fmt::format("\n## `{}`{}\n\n{}\n", inner, is_list ? " (list)" : "", field.help);
    write_tables(is_list ? field.section_elements.append() : field.section, inner, out);
  }
}

OrderedJson scalar_schema(const ScalarRef& scalar, const Limits& limits) {
  OrderedJson schema;
  if (std::holds_alternative<bool*>(scalar)) {
    schema["type"] = "boolean";
  } else if (std::holds_alternative<int*>(scalar) || std::holds_alternative<int64_t*>(scalar)) {
    schema["type"] = "integer";
  } else if (std::holds_alternative<double*>(scalar)) {
    schema["type"] = "number";
  } else if (const auto* names = std::get_if<EnumRef>(&scalar)) {
    schema["enum"] = names->names;
  } else {
    schema["type"] = OrderedJson::array({"string", "number", "boolean"});
  }
  if (std::isfinite(limits.min)) {
    schema[limits.min_is_excluded ? "exclusiveMinimum" : "minimum"] = limits.min;
  }
  if (std::isfinite(limits.max)) schema["maximum"] = limits.max;
  if (!limits.one_of.empty()) schema["enum"] = limits.one_of;
  return schema;
}

OrderedJson scalar_default(const ScalarRef& scalar) {
  if (const auto* value = std::get_if<bool*>(&scalar)) return **value;
  if (const auto* value = std::get_if<int*>(&scalar)) return **value;
  if (const auto* value = std::get_if<int64_t*>(&scalar)) return **value;
  if (const auto* value = std::get_if<double*>(&scalar)) return **value;
  if (const auto* value = std::get_if<std::string*>(&scalar)) return **value;
  if (const auto* value = std::get_if<std::filesystem::path*>(&scalar)) return (*value)->string();
  const auto& names = std::get<EnumRef>(scalar);
  return names.names.at(names.get());
}

OrderedJson section_schema(const Fields& fields);

OrderedJson field_schema(const Field& field) {
  OrderedJson schema;
  OrderedJson standard;
  switch (field.kind) {
    case Field::Kind::kSection:
      return section_schema(field.section);
    case Field::Kind::kSectionList:
      schema["type"] = "array";
      schema["items"] = section_schema(field.section_elements.append());
      return schema;
    case Field::Kind::kScalar:
      schema = scalar_schema(*field.scalar, field.limits);
      standard = scalar_default(*field.scalar);
      break;
    case Field::Kind::kOptional:
      if (field.elements.size() > 0) standard = scalar_default(field.elements.at(0));
      schema["anyOf"] = OrderedJson::array(
          {scalar_schema(sample_of(field), field.limits), OrderedJson{{"type", "null"}}});
      break;
    case Field::Kind::kList:
      standard = OrderedJson::array();
      for (size_t i = 0; i < field.elements.size(); ++i) {
        standard.push_back(scalar_default(field.elements.at(i)));
      }
      schema["type"] = "array";
      schema["items"] = scalar_schema(sample_of(field), field.limits);
      break;
  }
  schema["default"] = standard;
  return schema;
}

OrderedJson section_schema(const Fields& fields) {
  OrderedJson properties = OrderedJson::object();
  for (const Field& field : fields) {
    OrderedJson schema = field_schema(field);
    schema["description"] =
        field.unit.empty() ? field.help : fmt::format("{} ({})", field.help, field.unit);
    properties[field.key] = std::move(schema);
  }
  OrderedJson schema;
  schema["type"] = OrderedJson::array({"object", "null"});
  schema["properties"] = std::move(properties);
  schema["additionalProperties"] = false;
  return schema;
}

}  // namespace

namespace detail {

std::string fields_reference(const Fields& defaults) {
  std::string out;
  write_tables(defaults, "", out);
  return out;
}

std::string fields_json_schema(const Fields& defaults, std::string_view title) {
  OrderedJson schema;
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  schema["title"] = title;
  schema.update(section_schema(defaults));
  return schema.dump(2) + "\n";
}

}  // namespace detail
}  // namespace nibble
