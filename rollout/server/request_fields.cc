#include "rollout/server/request_fields.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "rollout/server/request_error.h"

namespace nibble {

RequestFields::RequestFields(const OrderedJson& object, std::string prefix)
    : object_(object), prefix_(std::move(prefix)) {
  if (object.is_object()) return;
  const std::string name = prefix_.substr(0, prefix_.find_last_of('.'));
  refuse_field(name, "{} is not a JSON object", name.empty() ? "the body" : name);
}

const OrderedJson* RequestFields::find(std::string_view name) const {
  const auto it = object_.find(std::string(name));
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> RequestFields::integer(std::string_view name, int64_t least,
                                              int64_t most) const {
  const OrderedJson* value = find(name);
  if (value == nullptr) return std::nullopt;
  const std::string field = full_name(name);
  const bool fits =
      value->is_number_integer() &&
      (!value->is_number_unsigned() || value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  if (!fits || value->get<int64_t>() < least || value->get<int64_t>() > most) {
    refuse_field(field, "{} must be a whole number from {} to {}", field, least, most);
  }
  return value->get<int64_t>();
}

double RequestFields::number_or(std::string_view name, double least, double most,
                                double otherwise) const {
  const OrderedJson* value = find(name);
  if (value == nullptr) return otherwise;
  const std::string field = full_name(name);
  if (!value->is_number() || !(value->get<double>() >= least && value->get<double>() <= most)) {
    refuse_field(field, "{} must be a number from {} to {}", field, least, most);
  }
  return value->get<double>();
}

bool RequestFields::boolean_or(std::string_view name, bool otherwise) const {
  const OrderedJson* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) {
    refuse_field(full_name(name), "{} must be true or false", full_name(name));
  }
  return value->get<bool>();
}

std::optional<std::string> RequestFields::text(std::string_view name) const {
  const OrderedJson* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) refuse_field(full_name(name), "{} must be a string", full_name(name));
  return value->get<std::string>();
}

std::vector<std::string> RequestFields::texts(std::string_view name, size_t most) const {
  const OrderedJson* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  const bool is_list = value->is_array() && value->size() <= most &&
                       std::all_of(value->begin(), value->end(),
                                   [](const OrderedJson& item) { return item.is_string(); });
  if (!is_list) {
    refuse_field(full_name(name), "{} must be a string or a list of at most {} strings",
                 full_name(name), most);
  }
  return value->get<std::vector<std::string>>();
}

std::vector<int32_t> RequestFields::token_ids(std::string_view name, int64_t vocab,
                                              size_t most) const {
  const OrderedJson* value = find(name);
  if (value == nullptr) return {};
  if (value->is_array() && value->size() > most) {
    refuse_field(full_name(name), "{} has {} token ids; at most {} are allowed", full_name(name),
                 value->size(), most);
  }
  return token_ids_of(*value, vocab, full_name(name));
}

void RequestFields::refuse_others(const std::vector<std::string_view>& known) const {
  for (const auto& [name, value] : object_.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      refuse_field(full_name(name), "unknown field '{}'", full_name(name));
    }
  }
}

std::vector<int32_t> token_ids_of(const OrderedJson& array, int64_t vocab,
                                  const std::string& field) {
  if (!array.is_array()) refuse_field(field, "{} must be a list of token ids", field);
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (const OrderedJson& item : array) {
    // Of a negative number, get<uint64_t> is beyond every vocabulary.
    if (!item.is_number_integer() || item.get<uint64_t>() >= static_cast<uint64_t>(vocab)) {
      refuse_field(field, "{} must hold token ids of the model's vocabulary of {}", field, vocab);
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

}  // namespace nibble
