#include "rollout/reward/instructions/instruction_args.h"

#include "core/base/fail.h"

namespace nibble {

const Json& InstructionArgs::required(const char* key) const {
  const auto found = kwargs_.find(key);
  if (found == kwargs_.end() || found->is_null()) {
    fail(ErrorCode::kInvalidArgument, "instruction '{}' wants '{}'", id_, key);
  }
  return *found;
}

int64_t InstructionArgs::number(const char* key) const {
  constexpr int64_t kMaxNumber = 1'000'000;
  const Json& value = required(key);
  // Data sets that passed through tables have 3.0 for 3.
  const bool is_whole = value.is_number() && value.get<double>() >= 0 &&
                        value.get<double>() <= kMaxNumber &&
                        value.get<double>() == static_cast<double>(value.get<int64_t>());
  if (!is_whole) {
    fail(ErrorCode::kInvalidArgument, "'{}' of instruction '{}' is {}; want a number from 0 to {}",
         key, id_, value.dump(-1, ' ', true).substr(0, 100), kMaxNumber);
  }
  return value.get<int64_t>();
}

std::string InstructionArgs::text(const char* key) const {
  const Json& value = required(key);
  if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
    fail(ErrorCode::kInvalidArgument, "'{}' of instruction '{}' is no text", key, id_);
  }
  return value.get<std::string>();
}

std::vector<std::string> InstructionArgs::texts(const char* key) const {
  const Json& value = required(key);
  std::vector<std::string> texts;
  if (value.is_array()) {
    for (const Json& text : value) {
      if (text.is_string() && !text.get_ref<const std::string&>().empty()) {
        texts.push_back(text.get<std::string>());
      }
    }
  }
  if (texts.empty() || texts.size() != value.size()) {
    fail(ErrorCode::kInvalidArgument, "'{}' of instruction '{}' is no list of texts", key, id_);
  }
  return texts;
}

bool InstructionArgs::compare(int64_t count, const char* relation_key, int64_t number) const {
  const std::string relation = text(relation_key);
  if (relation == "at least") return count >= number;
  if (relation == "less than") return count < number;
  fail(ErrorCode::kInvalidArgument,
       "'{}' of instruction '{}' is '{}'; it must be 'at least' or 'less than'", relation_key, id_,
       relation);
}

}  // namespace nibble
