#include "core/tokenizer/json_fields.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

const Json& null_json() {
  static const Json null;
  return null;
}

}  // namespace

JsonFields::JsonFields(const Json& object, std::string what,
                       std::initializer_list<std::string_view> known)
    : object_(object), what_(std::move(what)) {
  if (!object_.is_object()) {
    fail(ErrorCode::kInvalidArgument, "{} must be a JSON object", what_);
  }
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      fail(ErrorCode::kUnimplemented, "{}: key '{}' is not supported", what_, key);
    }
  }
}

const Json& JsonFields::get(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() ? null_json() : *found;
}

bool JsonFields::boolean(std::string_view key, bool absent) const {
  const Json& value = get(key);
  if (value.is_null()) return absent;
  if (!value.is_boolean()) fail(ErrorCode::kInvalidArgument, "{} must be a boolean", path(key));
  return value.get<bool>();
}

std::string JsonFields::text(std::string_view key) const {
  const Json& value = get(key);
  if (!value.is_string()) fail(ErrorCode::kInvalidArgument, "{} must be a string", path(key));
  return value.get<std::string>();
}

void JsonFields::require_neutral(std::string_view key, const Json& neutral) const {
  const Json& value = get(key);
  if (value.is_null() || value == neutral) return;
  std::string shown = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (shown.size() > 80) shown = shown.substr(0, 80) + "...";
  fail(ErrorCode::kUnimplemented, "{} = {} is not supported", path(key), shown);
}

std::string json_type_of(const Json& object, std::string_view what) {
  if (object.is_object()) {
    const auto type = object.find("type");
    if (type != object.end() && type->is_string()) return type->get<std::string>();
  }
  fail(ErrorCode::kInvalidArgument, "{} must be a JSON object with a \"type\"", what);
}

}  // namespace nibble
