#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace nibble {

/// RFC 4648, with padding.
std::string to_base64(std::span<const uint8_t> bytes);

}  // namespace nibble
