#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nibble {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  ///< keeps key order: templates and files people read

/// Parses untrusted JSON: depth at most 128, no duplicate keys. Throws Error{kInvalidArgument}
/// that names `what` (a file or field) and the place of the mistake.
Json parse_json(std::string_view text, std::string_view what);
OrderedJson parse_ordered_json(std::string_view text, std::string_view what);

/// parse_json of a file of at most `max_bytes`.
Json read_json_file(const std::filesystem::path& path, int64_t max_bytes = 64 << 20);

}  // namespace nibble
