#pragma once

#include <string_view>
#include <utility>

#include "core/base/fail.h"

namespace nibble {

/// What `body` returns; an Error it throws begins with "`what`: ", for a callee that does not know
/// which file or line it works on.
template <typename Body>
decltype(auto) with_context(std::string_view what, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    fail(error.code(), "{}: {}", what, error.what());
  }
}

}  // namespace nibble
