#include "core/data/json_records.h"

#include <fstream>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxLineBytes = 16 << 20;
constexpr int64_t kMaxRecords = 10'000'000;

}  // namespace

void for_each_json_record(const std::filesystem::path& path,
                          const std::function<void(JsonRecord&)>& body) {
  std::ifstream in(path);
  if (!in || std::filesystem::is_directory(path)) {
    fail(ErrorCode::kNotFound,
         "cannot open data file '{}'; a relative path begins where the command runs",
         path.string());
  }
  int64_t count = 0;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty()) continue;
    JsonRecord record{number, fmt::format("{}:{}", path.string(), number), {}};
    if (line.size() > kMaxLineBytes || count == kMaxRecords) {
      fail(ErrorCode::kInvalidArgument, "{}: more than {} bytes in a line or {} lines",
           record.where, kMaxLineBytes, kMaxRecords);
    }
    record.value = parse_json(line, record.where);
    if (!record.value.is_object()) {
      fail(ErrorCode::kInvalidArgument, "{}: want a JSON object with the fields of a record",
           record.where);
    }
    body(record);
    ++count;
  }
  if (count == 0) {
    fail(ErrorCode::kInvalidArgument, "data file '{}' has no records", path.string());
  }
}

Json& required_field(JsonRecord& record, const std::string& key) {
  const auto found = record.value.find(key);
  if (found == record.value.end()) {
    fail(ErrorCode::kInvalidArgument, "{}: no field '{}'", record.where, key);
  }
  return *found;
}

void check_prompt(const Json& prompt, const std::string& where) {
  if (prompt.is_string() && !prompt.get_ref<const std::string&>().empty()) return;
  if (prompt.is_array() && !prompt.empty()) {
    for (const Json& message : prompt) {
      if (!message.is_object() || !message.contains("role") || !message.contains("content")) {
        fail(ErrorCode::kInvalidArgument, "{}: a chat message needs role and content", where);
      }
    }
    return;
  }
  fail(ErrorCode::kInvalidArgument,
       "{}: the prompt must be a non-empty string or a list of chat messages", where);
}

}  // namespace nibble
