#include "core/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include "core/base/fail.h"

namespace nibble {

void init_logging(const std::string& level) {
  const auto parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") {
    fail(ErrorCode::kInvalidArgument,
         "log level '{}' is unknown; use trace, debug, info, warn, error or off", level);
  }
  spdlog::set_level(parsed);
  spdlog::set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %n: %v");
}

Logger get_logger(const std::string& name) {
  if (auto existing = spdlog::get(name)) return existing;
  try {
    auto logger = spdlog::stderr_color_mt(name);
    logger->flush_on(spdlog::level::info);
    return logger;
  } catch (const spdlog::spdlog_ex&) {
    return spdlog::get(name);  // another thread made it between the two calls
  }
}

}  // namespace nibble
