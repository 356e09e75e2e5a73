#pragma once

#include <string>

namespace nibble {

/// A place where tests make a process fail on purpose. NIBBLE_FAILPOINTS names what happens where,
/// "NAME@N=ACTION" separated by ';': when NAME is passed for the Nth time (from 1) the process is
/// killed (kill), stopped (stop), throws Error{kUnavailable} (error) or waits (sleep:MILLISECONDS).
/// Without the variable this is a look at a flag. Any thread may call it. Names begin with the
/// worker: "rollout/1.prepare".
void failpoint(const std::string& name);

/// Throws Error{kInvalidArgument} for a value of NIBBLE_FAILPOINTS that says something else.
void check_failpoints();

}  // namespace nibble
