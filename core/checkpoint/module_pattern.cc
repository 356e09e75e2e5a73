#include "core/checkpoint/module_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <memory>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr uint32_t kMatchLimit = 100'000;  // patterns come with a checkpoint: bounded work

struct FreePcre {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

[[noreturn]] void refuse(const std::string& pattern, int error) {
  std::array<PCRE2_UCHAR, 200> message{};
  pcre2_get_error_message(error, message.data(), message.size());
  fail(ErrorCode::kInvalidArgument, "ignore entry 're:{}' is no usable regular expression: {}",
       pattern, reinterpret_cast<const char*>(message.data()));
}

}  // namespace

bool matches_module_pattern(const std::string& pattern, const std::string& module) {
  int error = 0;
  size_t offset = 0;
  const std::unique_ptr<pcre2_code, FreePcre> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF, &error,
                    &offset, nullptr));
  if (code == nullptr) refuse(pattern, error);
  const std::unique_ptr<pcre2_match_data, FreePcre> data(
      pcre2_match_data_create_from_pattern(code.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, FreePcre> context(pcre2_match_context_create(nullptr));
  if (data == nullptr || context == nullptr) throw std::bad_alloc();
  pcre2_set_match_limit(context.get(), kMatchLimit);
  const int found = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(module.data()),
                                module.size(), 0, PCRE2_ANCHORED, data.get(), context.get());
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) refuse(pattern, found);
  return true;
}

}  // namespace nibble
