#include "core/base/env.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "core/base/fail.h"

namespace nibble {
namespace {

std::optional<std::string> get(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

}  // namespace

Env read_env() {
  Env env;
  if (const auto flag = get("OPEN_TRAINING_INT4_FAKE_QAT_FLAG")) {
    if (*flag != "0" && *flag != "1") {
      fail(ErrorCode::kInvalidArgument,
           "environment variable OPEN_TRAINING_INT4_FAKE_QAT_FLAG is '{}'; it must be 0 or 1",
           *flag);
    }
    env.fake_qat_flag = *flag == "1";
  }
  if (const auto group = get("OPEN_TRAINING_INT4_GROUP_SIZE")) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(group->data(), group->data() + group->size(), value);
    if (error != std::errc() || end != group->data() + group->size() ||
        (value != 32 && value != 64 && value != 128)) {
      fail(ErrorCode::kInvalidArgument,
           "environment variable OPEN_TRAINING_INT4_GROUP_SIZE is '{}'; it must be 32, 64 or 128",
           *group);
    }
    env.fake_qat_group = value;
  }
  env.cpu_isa = get("NIBBLE_CPU_ISA");
  if (env.cpu_isa && *env.cpu_isa != "scalar" && *env.cpu_isa != "avx2" &&
      *env.cpu_isa != "avx512") {
    fail(ErrorCode::kInvalidArgument,
         "environment variable NIBBLE_CPU_ISA is '{}'; it must be scalar, avx2 or avx512",
         *env.cpu_isa);
  }
  env.log_level = get("NIBBLE_LOG");
  env.failpoints = get("NIBBLE_FAILPOINTS");
  return env;
}

std::optional<std::string> read_env_variable(const std::string& name) { return get(name.c_str()); }

void set_env(const std::string& name, const std::string& value) {
  (void)setenv(name.c_str(), value.c_str(), /*overwrite=*/0);
}

}  // namespace nibble
