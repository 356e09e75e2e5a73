#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace nibble {

/// Every environment variable that changes behaviour, read in this one place.
struct Env {
  std::optional<bool> fake_qat_flag;      ///< OPEN_TRAINING_INT4_FAKE_QAT_FLAG: 0 or 1
  std::optional<int64_t> fake_qat_group;  ///< OPEN_TRAINING_INT4_GROUP_SIZE: 32, 64 or 128
  std::optional<std::string> cpu_isa;     ///< NIBBLE_CPU_ISA: scalar | avx2 | avx512 (a cap)
  std::optional<std::string> log_level;   ///< NIBBLE_LOG: trace | debug | info | warn | error
  std::optional<std::string> failpoints;  ///< NIBBLE_FAILPOINTS: faults for tests (failpoint.h)
};

/// Reads the variables above. Throws Error{kInvalidArgument} naming a variable with a bad value.
Env read_env();

/// A variable whose name a user gave; nullopt if it is not set, or empty.
std::optional<std::string> read_env_variable(const std::string& name);

/// Sets a variable that a library reads, unless it is set already. Before threads are started.
void set_env(const std::string& name, const std::string& value);

}  // namespace nibble
