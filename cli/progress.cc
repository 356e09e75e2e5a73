#include "cli/progress.h"

#include <unistd.h>

#include <cstdio>

#include "core/base/log.h"

namespace nibble {
namespace {

constexpr double kTerminalIntervalMs = 100.0;
constexpr double kLogIntervalMs = 10'000.0;

}  // namespace

ProgressLine::ProgressLine(std::string verb)
    : verb_(std::move(verb)), is_terminal_(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
  if (is_drawn_) std::fputs("\r\x1b[K", stderr);
}

void ProgressLine::update(int64_t done_bytes, int64_t total_bytes, const std::string& name) {
  if (!spdlog::should_log(spdlog::level::info)) return;
  if (since_drawn_.elapsed_ms() < (is_terminal_ ? kTerminalIntervalMs : kLogIntervalMs)) return;
  since_drawn_.restart_ms();
  const double done = static_cast<double>(done_bytes);
  const double total = static_cast<double>(total_bytes);
  const double left_s = since_start_.elapsed_ms() / 1000.0 * (total - done) / done;
  const std::string text = fmt::format("{} {:5.1f} % of {:.2f} GB, {:.0f} s left: {}", verb_,
                                       100.0 * done / total, total / 1e9, left_s, name);
  if (is_terminal_) {
    std::fprintf(stderr, "\r\x1b[K%.*s", 110, text.c_str());
    is_drawn_ = true;
  } else {
    get_logger("nibble")->info("{}", text);
  }
}

}  // namespace nibble
