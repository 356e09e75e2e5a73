#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "core/config/limits.h"

namespace nibble {

/// One name of an enum as it stands in YAML. The owner of an enum declares, beside it,
///   constexpr std::array<EnumName<Reference>, 2> enum_names(Reference) {
///     return {{{Reference::kAuto, "auto"}, {Reference::kNever, "never"}}};
///   }
template <typename Enum>
struct EnumName {
  Enum value;
  std::string_view name;
};

/// An enum value seen without its type, as an index into its names.
struct EnumRef {
  std::vector<std::string> names;
  std::function<size_t()> get;
  std::function<void(size_t)> set;
};

/// One scalar of a configuration struct, bound to where it lives.
using ScalarRef =
    std::variant<bool*, int*, int64_t*, double*, std::string*, std::filesystem::path*, EnumRef>;

/// The elements of a bound vector, or of an optional (at most one element).
template <typename Element>
struct ElementsRef {
  std::function<size_t()> size;
  std::function<Element(size_t)> at;
  std::function<Element()> append;
  std::function<void()> clear;
};

/// One key of a section, bound to an object. The object must outlive it and not move.
struct Field {
  enum class Kind { kScalar, kOptional, kList, kSection, kSectionList };
  std::string key;
  std::string unit;  ///< empty: none
  std::string help;
  Limits limits = {};
  Kind kind = Kind::kScalar;
  std::optional<ScalarRef> scalar = {};                   ///< kScalar
  ElementsRef<ScalarRef> elements = {};                   ///< kOptional, kList
  std::vector<Field> section = {};                        ///< kSection
  ElementsRef<std::vector<Field>> section_elements = {};  ///< kSectionList
};

using Fields = std::vector<Field>;

template <typename Config>
Fields fields_of(Config& config);

/// The one visitor. A configuration struct's owner declares, beside it,
///   template <typename Visitor>
///   void visit_fields(Visitor& v, RolloutConfig& c) {
///     v.field("max_new_tokens", c.max_new_tokens, "tokens", "longest response", AtLeast{1});
///     v.section("sampling", c.sampling, "how the next token is drawn");
///   }
/// and the reader, `--set`, the dump, the reference page and the JSON schema all follow from it.
/// Field types: bool, int, int64_t, double, std::string, std::filesystem::path, enums with
/// enum_names, and std::vector and std::optional of these (not of bool in a vector). Which fields
/// are visited must not depend on their values.
class FieldCollector {
 public:
  /// A scalar, optional scalar or list of scalars. `limits` hold for each number in it.
  template <typename T>
  void field(std::string_view key, T& value, std::string_view unit, std::string_view help,
             Limits limits = {});
  /// A nested struct, or a std::vector of them (a YAML list of maps).
  template <typename T>
  void section(std::string_view key, T& value, std::string_view help);

  Fields take() { return std::move(fields_); }

 private:
  void add(Field field);  // refuses a key declared twice
  Fields fields_;
};

namespace detail {

template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};
template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};

template <typename T>
ScalarRef bind_scalar(T& value) {
  if constexpr (std::is_enum_v<T>) {
    const auto table = enum_names(T{});
    EnumRef ref;
    for (const auto& entry : table) ref.names.emplace_back(entry.name);
    ref.get = [&value, table] {
      for (size_t i = 0; i < table.size(); ++i) {
        if (table[i].value == value) return i;
      }
      return table.size();
    };
    ref.set = [&value, table](size_t index) { value = table[index].value; };
    return ref;
  } else {
    return &value;
  }
}

}  // namespace detail

template <typename Config>
Fields fields_of(Config& config) {
  FieldCollector collector;
  visit_fields(collector, config);
  return collector.take();
}

template <typename T>
void FieldCollector::field(std::string_view key, T& value, std::string_view unit,
                           std::string_view help, Limits limits) {
  Field field{std::string(key), std::string(unit), std::string(help), std::move(limits)};
  if constexpr (detail::IsVector<T>::value) {
    static_assert(!std::is_same_v<T, std::vector<bool>>, "std::vector<bool> has no references");
    field.kind = Field::Kind::kList;
    field.elements = {[&value] { return value.size(); },
                      [&value](size_t i) { return detail::bind_scalar(value[i]); },
                      [&value] { return detail::bind_scalar(value.emplace_back()); },
                      [&value] { value.clear(); }};
  } else if constexpr (detail::IsOptional<T>::value) {
    field.kind = Field::Kind::kOptional;
    field.elements = {[&value] { return value.has_value() ? size_t{1} : size_t{0}; },
                      [&value](size_t) { return detail::bind_scalar(*value); },
                      [&value] { return detail::bind_scalar(value.emplace()); },
                      [&value] { value.reset(); }};
  } else {
    field.scalar = detail::bind_scalar(value);
  }
  add(std::move(field));
}

template <typename T>
void FieldCollector::section(std::string_view key, T& value, std::string_view help) {
  Field field{std::string(key), "", std::string(help)};
  if constexpr (detail::IsVector<T>::value) {
    field.kind = Field::Kind::kSectionList;
    field.section_elements = {
        [&value] { return value.size(); }, [&value](size_t i) { return fields_of(value[i]); },
        [&value] { return fields_of(value.emplace_back()); }, [&value] { value.clear(); }};
  } else {
    field.kind = Field::Kind::kSection;
    field.section = fields_of(value);
  }
  add(std::move(field));
}

}  // namespace nibble
