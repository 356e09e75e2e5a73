#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "core/base/error.h"

namespace nibble {
namespace detail {
[[noreturn]] void throw_error(ErrorCode code, std::string message);
[[noreturn]] void throw_check(const char* condition, const char* file, int line,
                              std::string message);
}  // namespace detail

/// Throws Error{code} with a formatted sentence. Name the value at fault and what to do.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  detail::throw_error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nibble

/// For our own bugs: throws Error{kInternal} with the formatted message, the condition and the
/// place.
#define NIBBLE_CHECK(condition, ...)                                                             \
  do {                                                                                           \
    if (!(condition)) [[unlikely]] {                                                             \
      ::nibble::detail::throw_check(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
    }                                                                                            \
  } while (false)
