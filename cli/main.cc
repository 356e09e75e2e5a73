// nibble: composition only. Parses, runs the chosen command, maps errors to exit codes.
#include <c10/util/Exception.h>

#include <cstdio>
#include <filesystem>
#include <new>
#include <string>

#include "cli/cli_app.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

namespace nibble {
namespace {

// One line, whatever a library put into its message.
int report(std::string message, int code) {
  message = message.substr(0, message.find('\n'));
  std::fprintf(stderr, "nibble: %s\n", message.c_str());
  return code;
}

int run(int argc, const char* const* argv) {
  const auto command = parse_command_line(argc, argv);
  std::fputs(command->text_to_print.c_str(), stdout);
  if (command->context.run) {
    init_logging(command->log_level);
    command->context.run();
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    return report("cannot write to stdout: the disk is full or the reader is gone", 1);
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  // torch's flight recorder notes every collective of a process without a lock for its own list:
  // two threads with a group each, as a colocated worker has, can crash in it.
  nibble::set_env("TORCH_FR_BUFFER_SIZE", "0");
  try {
    return nibble::run(argc, argv);
  } catch (const nibble::Error& error) {
    return nibble::report(error.what(), nibble::exit_code(error.code()));
  } catch (const c10::Error& error) {
    return nibble::report(error.what_without_backtrace(), 1);
  } catch (const std::bad_alloc&) {
    return nibble::report("out of memory; use a smaller model, chunk or number of threads", 1);
  } catch (const std::filesystem::filesystem_error& error) {
    return nibble::report(error.what(), nibble::exit_code(nibble::ErrorCode::kInvalidArgument));
  } catch (const std::exception& error) {
    return nibble::report(
        std::string("internal error: ") + error.what() +
            "; this is a fault of nibble, please report it with the command and its input",
        1);
  }
}
