#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// Reads the arguments of one instruction; errors name it. Borrows both.
class InstructionArgs {
 public:
  InstructionArgs(const std::string& id, const Json& kwargs) : id_(id), kwargs_(kwargs) {}

  int64_t number(const char* key) const;                  ///< from 0 to 1,000,000
  std::string text(const char* key) const;                ///< not empty
  std::vector<std::string> texts(const char* key) const;  ///< at least one
  /// Whether `count` is "at least", or "less than", `number`, as `relation_key` says.
  bool compare(int64_t count, const char* relation_key, int64_t number) const;

 private:
  const Json& required(const char* key) const;

  const std::string& id_;
  const Json& kwargs_;
};

}  // namespace nibble
