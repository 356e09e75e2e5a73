#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "core/base/json.h"

namespace nibble {

/// Reads one JSON object of a foreign file strictly: wrong types and keys nobody knows are
/// refused by name. Borrows the object.
class JsonFields {
 public:
  /// Throws Error{kInvalidArgument} if `object` is not an object, Error{kUnimplemented} naming a
  /// key that is not in `known`. `what` names the object in messages.
  JsonFields(const Json& object, std::string what, std::initializer_list<std::string_view> known);

  /// The value, or null where the key is absent.
  const Json& get(std::string_view key) const;
  bool boolean(std::string_view key, bool absent) const;
  /// Throws when absent.
  std::string text(std::string_view key) const;
  const std::string& what() const { return what_; }
  std::string path(std::string_view key) const { return what_ + "." + std::string(key); }

  /// Throws Error{kUnimplemented} unless the key is absent, null or equal to `neutral`.
  void require_neutral(std::string_view key, const Json& neutral) const;

 private:
  const Json& object_;
  std::string what_;
};

/// The "type" of an object such as {"type": "NFC"}. Throws Error{kInvalidArgument} without one.
std::string json_type_of(const Json& object, std::string_view what);

}  // namespace nibble
