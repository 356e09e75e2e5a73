#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// The fields of a supervised record: a prompt with its response, or a text alone.
struct RecordKeys {
  std::string prompt = "prompt";
  std::string response = "response";
  std::string text = "text";
};

/// One record that is learned from as it is.
struct TextRecord {
  int64_t line = 0;  ///< in its file, from 1
  Json prompt;       ///< a string, or a list of chat messages; null: `text` stands alone
  std::string text;  ///< the response to the prompt, or the whole text; not empty
};

/// Reads JSON lines of records, each {prompt, response} or {text}; other fields are not looked at.
/// Throws Error naming file and line for a record that is neither or both, for an empty or
/// misshapen field, and what for_each_json_record throws.
std::vector<TextRecord> read_text_records(const std::filesystem::path& path,
                                          const RecordKeys& keys);

}  // namespace nibble
