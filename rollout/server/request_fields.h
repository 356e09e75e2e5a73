#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// The fields of a request's JSON object, read by type and range. A field that is null counts as
/// absent, as in OpenAI's API. Everything throws RequestError 400 naming the field.
class RequestFields {
 public:
  /// Borrows `object`. `prefix` goes before names in messages: "sampling_params.".
  explicit RequestFields(const OrderedJson& object, std::string prefix = {});

  /// Null if absent.
  const OrderedJson* find(std::string_view name) const;
  std::string full_name(std::string_view name) const { return prefix_ + std::string(name); }

  std::optional<int64_t> integer(std::string_view name, int64_t least, int64_t most) const;
  int64_t integer_or(std::string_view name, int64_t least, int64_t most, int64_t otherwise) const {
    return integer(name, least, most).value_or(otherwise);
  }
  double number_or(std::string_view name, double least, double most, double otherwise) const;
  bool boolean_or(std::string_view name, bool otherwise) const;
  std::optional<std::string> text(std::string_view name) const;
  /// A string or an array of strings, at most `most`; empty if absent.
  std::vector<std::string> texts(std::string_view name, size_t most) const;
  /// An array of token ids in [0, vocab); empty if absent.
  std::vector<int32_t> token_ids(std::string_view name, int64_t vocab, size_t most) const;

  /// Refuses fields that are not listed.
  void refuse_others(const std::vector<std::string_view>& known) const;

 private:
  const OrderedJson& object_;
  const std::string prefix_;
};

/// Token ids of an array. Throws RequestError 400 naming `field`.
std::vector<int32_t> token_ids_of(const OrderedJson& array, int64_t vocab,
                                  const std::string& field);

}  // namespace nibble
