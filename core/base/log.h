#pragma once

#include <spdlog/spdlog.h>

#include <memory>
#include <string>

namespace nibble {

using Logger = std::shared_ptr<spdlog::logger>;  // shared: spdlog's registry keeps one too

/// Sets the process-wide level ("trace".."error") and pattern; logs go to stderr, so that stdout
/// stays machine-readable. Call once from main. Throws Error{kInvalidArgument} on a bad level.
void init_logging(const std::string& level);

/// The logger of one role, e.g. "trainer/0". Made on first use.
Logger get_logger(const std::string& name);

}  // namespace nibble
