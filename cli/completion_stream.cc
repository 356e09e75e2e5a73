#include "cli/completion_stream.h"

#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr size_t kMaxLine = 1 << 20;

}  // namespace

int64_t CompletionStream::push(std::string_view bytes) {
  int64_t parts = 0;
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    line_ += bytes.substr(0, end);
    if (line_.size() > kMaxLine) {
      fail(ErrorCode::kDataLoss, "a line of the stream has more than {} bytes", kMaxLine);
    }
    if (end == std::string_view::npos) break;
    bytes.remove_prefix(end + 1);
    if (line_.ends_with('\r')) line_.pop_back();
    parts += take_line(line_) ? 1 : 0;
    line_.clear();
  }
  return parts;
}

// Whether it is an event with a part of the answer.
bool CompletionStream::take_line(std::string_view line) {
  constexpr std::string_view kData = "data:";
  if (line.empty() || line.starts_with(':')) return false;  // end of an event, or a comment
  if (!line.starts_with(kData)) {
    fail(ErrorCode::kDataLoss, "'{}' is no event of a stream", line.substr(0, 80));
  }
  line.remove_prefix(kData.size());
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (line == "[DONE]") {
    has_ended_ = true;
    return false;
  }
  const Json event = parse_json(line, "an event of the stream");
  try {
    if (const auto error = event.find("error"); error != event.end()) {
      fail(ErrorCode::kUnavailable, "{}", error->at("message").get<std::string>());
    }
    if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
      num_tokens_ = usage->at("completion_tokens").get<int64_t>();
    }
    const Json& choices = event.at("choices");
    if (choices.empty()) return false;
    text_ += choices.at(0).at("text").get<std::string>();
    const auto reason = choices.at(0).find("finish_reason");
    if (reason != choices.at(0).end() && reason->is_string()) reason_ = *reason;
  } catch (const Json::exception&) {
    fail(ErrorCode::kDataLoss, "'{}' is no event of a completion", line.substr(0, 200));
  }
  return true;
}

}  // namespace nibble
