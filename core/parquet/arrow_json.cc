#include "core/parquet/arrow_json.h"

#include <arrow/array.h>
#include <arrow/extension_type.h>
#include <arrow/type.h>

#include <string>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 32;

// The type says which class an array has: Arrow makes no other.
template <typename Wanted>
const Wanted& as(const arrow::Array& array) {
  return static_cast<const Wanted&>(array);
}

Json to_json(const arrow::Array& array, int64_t i, int depth);

template <typename List>
Json list_to_json(const List& list, int64_t i, int depth) {
  Json items = Json::array();
  for (int64_t k = list.value_offset(i); k < list.value_offset(i) + list.value_length(i); ++k) {
    items.push_back(to_json(*list.values(), k, depth + 1));
  }
  return items;
}

Json struct_to_json(const arrow::StructArray& array, int64_t i, int depth) {
  Json object = Json::object();
  for (int k = 0; k < array.num_fields(); ++k) {
    Json value = to_json(*array.field(k), i, depth + 1);
    if (!value.is_null()) object[array.struct_type()->field(k)->name()] = std::move(value);
  }
  return object;
}

// Arrow's reader does not compare the indices of a nested dictionary with its length.
Json dictionary_to_json(const arrow::DictionaryArray& array, int64_t i, int depth) {
  const int64_t index = array.GetValueIndex(i);
  if (index < 0 || index >= array.dictionary()->length()) {
    fail(ErrorCode::kInvalidArgument, "it refers to value {} of a dictionary of {}", index,
         array.dictionary()->length());
  }
  return to_json(*array.dictionary(), index, depth + 1);
}

Json to_json(const arrow::Array& array, int64_t i, int depth) {
  if (depth > kMaxDepth) {
    fail(ErrorCode::kInvalidArgument, "it is nested deeper than {}", kMaxDepth);
  }
  if (array.IsNull(i)) return {};
  switch (array.type_id()) {
    case arrow::Type::BOOL:
      return as<arrow::BooleanArray>(array).Value(i);
    case arrow::Type::INT8:
      return as<arrow::Int8Array>(array).Value(i);
    case arrow::Type::INT16:
      return as<arrow::Int16Array>(array).Value(i);
    case arrow::Type::INT32:
      return as<arrow::Int32Array>(array).Value(i);
    case arrow::Type::INT64:
      return as<arrow::Int64Array>(array).Value(i);
    case arrow::Type::UINT8:
      return as<arrow::UInt8Array>(array).Value(i);
    case arrow::Type::UINT16:
      return as<arrow::UInt16Array>(array).Value(i);
    case arrow::Type::UINT32:
      return as<arrow::UInt32Array>(array).Value(i);
    case arrow::Type::UINT64:
      return as<arrow::UInt64Array>(array).Value(i);
    case arrow::Type::FLOAT:
      return as<arrow::FloatArray>(array).Value(i);
    case arrow::Type::DOUBLE:
      return as<arrow::DoubleArray>(array).Value(i);
    case arrow::Type::STRING:
      return std::string(as<arrow::StringArray>(array).GetView(i));
    case arrow::Type::LARGE_STRING:
      return std::string(as<arrow::LargeStringArray>(array).GetView(i));
    case arrow::Type::STRING_VIEW:
      return std::string(as<arrow::StringViewArray>(array).GetView(i));
    case arrow::Type::DICTIONARY:
      return dictionary_to_json(as<arrow::DictionaryArray>(array), i, depth);
    case arrow::Type::LIST:
      return list_to_json(as<arrow::ListArray>(array), i, depth);
    case arrow::Type::LARGE_LIST:
      return list_to_json(as<arrow::LargeListArray>(array), i, depth);
    case arrow::Type::STRUCT:
      return struct_to_json(as<arrow::StructArray>(array), i, depth);
    case arrow::Type::EXTENSION:
      return to_json(*as<arrow::ExtensionArray>(array).storage(), i, depth + 1);
    default:
      fail(ErrorCode::kInvalidArgument, "it has the type {}, which is not read",
           array.type()->ToString().substr(0, 200));
  }
}

}  // namespace

Json arrow_to_json(const arrow::Array& array, int64_t i) { return to_json(array, i, 0); }

}  // namespace nibble
