#include "core/base/json.h"

#include <set>
#include <vector>

#include "core/base/fail.h"
#include "core/base/file.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 128;

// Without the library's own error number: "[json.exception.parse_error.101] ".
std::string reason_of(const std::exception& error) {
  const std::string text = error.what();
  const size_t end = text.starts_with("[json.") ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

template <typename AnyJson>
AnyJson parse_checked(std::string_view text, std::string_view what) {
  // The parser takes a NUL for the end of its input.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    fail(ErrorCode::kInvalidArgument, "{}: not valid JSON: a zero byte at {}", what, nul);
  }
  std::vector<std::set<std::string>> keys;
  const auto callback = [&](int depth, typename AnyJson::parse_event_t event, AnyJson& value) {
    if (depth > kMaxDepth)
      fail(ErrorCode::kInvalidArgument, "{}: JSON nested deeper than {}", what, kMaxDepth);
    using Event = typename AnyJson::parse_event_t;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end && !keys.empty()) keys.pop_back();
    if (event == Event::key && !keys.empty()) {
      const auto name = value.template get<std::string>();
      if (!keys.back().insert(name).second) {
        fail(ErrorCode::kInvalidArgument, "{}: duplicate JSON key '{}'", what, name);
      }
    }
    return true;
  };
  try {
    return AnyJson::parse(text.begin(), text.end(), callback);
  } catch (const typename AnyJson::exception& error) {
    fail(ErrorCode::kInvalidArgument, "{}: not valid JSON: {}", what, reason_of(error));
  }
}

}  // namespace

Json parse_json(std::string_view text, std::string_view what) {
  return parse_checked<Json>(text, what);
}

OrderedJson parse_ordered_json(std::string_view text, std::string_view what) {
  return parse_checked<OrderedJson>(text, what);
}

Json read_json_file(const std::filesystem::path& path, int64_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path.string());
}

}  // namespace nibble
