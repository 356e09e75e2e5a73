#pragma once

#include <cstdint>
#include <string>

#include "core/base/clock.h"

namespace nibble {

/// Progress of a long command on stderr: a line that is drawn over itself on a terminal, otherwise
/// one line every ten seconds. Silent if the log level hides "info".
class ProgressLine {
 public:
  explicit ProgressLine(std::string verb);
  ~ProgressLine();
  void update(int64_t done_bytes, int64_t total_bytes, const std::string& name);

 private:
  const std::string verb_;
  const bool is_terminal_;
  bool is_drawn_ = false;
  Stopwatch since_start_;
  Stopwatch since_drawn_;
};

}  // namespace nibble
