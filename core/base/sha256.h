#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace nibble {

/// SHA-256 of bytes given piece by piece (OpenSSL).
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(std::span<const std::byte> bytes);
  /// 64 hexadecimal digits. Call once, last.
  std::string finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

}  // namespace nibble
