#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "core/base/json.h"

namespace nibble {

/// One line of a data file.
struct JsonRecord {
  int64_t line = 0;   ///< from 1
  std::string where;  ///< "data.jsonl:3", for messages
  Json value;         ///< an object
};

/// Reads JSON lines, one object a line; empty lines are skipped. Throws Error naming file and line
/// for anything else, for a line of more than 16 MiB, and past 10 million records; Error{kNotFound}
/// for a missing file, Error{kInvalidArgument} for one without records. What `body` throws passes.
void for_each_json_record(const std::filesystem::path& path,
                          const std::function<void(JsonRecord&)>& body);

/// The field `key` of a record, or Error{kInvalidArgument} naming it.
Json& required_field(JsonRecord& record, const std::string& key);

/// A prompt is a non-empty string or a list of chat messages, each with role and content. Throws
/// Error{kInvalidArgument} beginning with `where`.
void check_prompt(const Json& prompt, const std::string& where);

}  // namespace nibble
