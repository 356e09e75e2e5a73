#include "rollout/server/base64.h"

#include <openssl/evp.h>

namespace nibble {

std::string to_base64(std::span<const uint8_t> bytes) {
  std::string text((bytes.size() + 2) / 3 * 4 + 1, '\0');  // EVP_EncodeBlock ends it with a zero
  const int count = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), bytes.data(),
                                    static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(count));
  return text;
}

}  // namespace nibble
