#pragma once

#include <memory>
#include <string>

#include "cli/command.h"

namespace nibble {

/// What a command line asks for.
struct ParsedCommand {
  CommandContext context;     ///< `run` is empty if only help or the version was wanted
  std::string log_level;      ///< of --log-level, else NIBBLE_LOG, else "info"
  std::string text_to_print;  ///< help or version, for stdout
};

/// Reads the command line of `nibble`. Throws Error{kInvalidArgument} for an unknown command or
/// flag (with the nearest known one), a missing or malformed value.
std::unique_ptr<ParsedCommand> parse_command_line(int argc, const char* const* argv);

}  // namespace nibble
