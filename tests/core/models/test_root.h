#pragma once

#include <cstdlib>
#include <filesystem>

namespace nibble {

/// Where tests/oracles is: this repository, or what NIBBLE_TEST_ROOT names (a bundle's copy).
inline std::filesystem::path test_root() {
  const char* moved = std::getenv("NIBBLE_TEST_ROOT");
  return moved != nullptr ? moved : NIBBLE_SOURCE_DIR;
}

}  // namespace nibble
