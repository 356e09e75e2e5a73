#include "core/base/fail.h"
#include "core/config/config.h"
#include "core/config/scalar.h"

namespace nibble {
namespace {

/// The YAML of a field that holds no sections.
std::string value_of(const Field& field) {
  if (field.kind == Field::Kind::kScalar) return scalar_to_yaml(*field.scalar);
  std::vector<std::string> items;
  for (size_t i = 0; i < field.elements.size(); ++i) {
    items.push_back(scalar_to_yaml(field.elements.at(i)));
  }
  if (field.kind == Field::Kind::kOptional) return items.empty() ? "null" : items[0];
  return fmt::format("[{}]", fmt::join(items, ", "));
}

std::string comment_of(const Field& field, const Field* standard) {
  std::string comment = field.help;
  std::vector<std::string> notes;
  if (!field.unit.empty()) notes.push_back(field.unit);
  if (const std::string limits = field.limits.describe(); !limits.empty()) notes.push_back(limits);
  if (standard != nullptr && value_of(*standard) != value_of(field)) {
    notes.push_back("default " + value_of(*standard));
  }
  if (!notes.empty()) comment += fmt::format(" ({})", fmt::join(notes, "; "));
  return comment;
}

/// Writes one section. `lead` stands before its first line in place of the indentation, so that
/// a list element can start with a dash. `defaults` has the same keys, or is null.
void write_section(const Fields& fields, const Fields* defaults, std::string lead,
                   const std::string& indent, std::string& out) {
  for (size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    const Field* standard = defaults == nullptr ? nullptr : &(*defaults)[i];
    out += std::exchange(lead, indent);
    if (field.kind == Field::Kind::kSection) {
      out += fmt::format("{}:  # {}\n", field.key, field.help);
      write_section(field.section, standard == nullptr ? nullptr : &standard->section,
                    indent + "  ", indent + "  ", out);
    } else if (field.kind == Field::Kind::kSectionList) {
      const size_t size = field.section_elements.size();
      out += fmt::format("{}:{}  # {}\n", field.key, size == 0 ? " []" : "", field.help);
      for (size_t element = 0; element < size; ++element) {
        write_section(field.section_elements.at(element), nullptr, indent + "  - ", indent + "    ",
                      out);
      }
    } else {
      out += fmt::format("{}: {}  # {}\n", field.key, value_of(field), comment_of(field, standard));
    }
  }
}

// A list of sections on one line.
std::string list_of(const Field& field) {
  std::vector<std::string> elements;
  for (size_t i = 0; i < field.section_elements.size(); ++i) {
    std::vector<std::string> values;
    for (const Field& inner : field.section_elements.at(i)) {
      values.push_back(fmt::format("{}: {}", inner.key, value_of(inner)));
    }
    elements.push_back(fmt::format("{{{}}}", fmt::join(values, ", ")));
  }
  return fmt::format("[{}]", fmt::join(elements, ", "));
}

void add_changed(const Fields& fields, const Fields& before, const std::string& prefix,
                 std::vector<ChangedValue>& changed) {
  for (size_t i = 0; i < fields.size(); ++i) {
    const std::string key = prefix + fields[i].key;
    if (fields[i].kind == Field::Kind::kSection) {
      add_changed(fields[i].section, before[i].section, key + ".", changed);
      continue;
    }
    const bool is_list = fields[i].kind == Field::Kind::kSectionList;
    std::string now = is_list ? list_of(fields[i]) : value_of(fields[i]);
    std::string then = is_list ? list_of(before[i]) : value_of(before[i]);
    if (now != then) changed.push_back({key, std::move(then), std::move(now)});
  }
}

}  // namespace

namespace detail {

std::vector<ChangedValue> changed_fields(const Fields& fields, const Fields& before) {
  std::vector<ChangedValue> changed;
  add_changed(fields, before, "", changed);
  return changed;
}

std::string dump_fields(const Fields& fields, const Fields& defaults) {
  std::string out;
  write_section(fields, &defaults, "", "", out);
  return out;
}

}  // namespace detail
}  // namespace nibble
