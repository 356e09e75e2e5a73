#include "core/data/text_records.h"

#include "core/base/fail.h"
#include "core/data/json_records.h"

namespace nibble {
namespace {

std::string take_text(JsonRecord& record, const std::string& key) {
  Json& field = required_field(record, key);
  if (!field.is_string() || field.get_ref<const std::string&>().empty()) {
    fail(ErrorCode::kInvalidArgument, "{}: '{}' must be a non-empty string", record.where, key);
  }
  return std::move(field.get_ref<std::string&>());
}

}  // namespace

std::vector<TextRecord> read_text_records(const std::filesystem::path& path,
                                          const RecordKeys& keys) {
  std::vector<TextRecord> records;
  for_each_json_record(path, [&](JsonRecord& record) {
    const bool has_text = record.value.contains(keys.text);
    for (const std::string& key : {keys.prompt, keys.response}) {
      if (has_text == record.value.contains(key)) {
        fail(ErrorCode::kInvalidArgument,
             "{}: {} '{}' {} '{}'; a record is either '{}' with '{}', or '{}' alone", record.where,
             has_text ? "both" : "neither", keys.text, has_text ? "and" : "nor", key, keys.prompt,
             keys.response, keys.text);
      }
    }
    if (has_text) {
      records.push_back({record.line, Json(), take_text(record, keys.text)});
      return;
    }
    check_prompt(record.value[keys.prompt], record.where);
    std::string response = take_text(record, keys.response);
    records.push_back({record.line, std::move(record.value[keys.prompt]), std::move(response)});
  });
  return records;
}

}  // namespace nibble
