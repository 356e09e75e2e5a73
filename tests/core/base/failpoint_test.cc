#include "core/base/failpoint.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>

#include "core/base/error.h"

namespace nibble {
namespace {

// Status of a child with that NIBBLE_FAILPOINTS: the variable is read once a process.
int run_with(const char* failpoints, const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("NIBBLE_FAILPOINTS", failpoints, 1);
    _exit(body());
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

int passes_twice() {
  failpoint("a.b");
  failpoint("other");
  try {
    failpoint("a.b");
  } catch (const Error& error) {
    return error.code() == ErrorCode::kUnavailable ? 7 : 8;
  }
  return 0;
}

TEST(Failpoint, ActsTheNthTimeItsNameIsPassed) {
  EXPECT_EQ(WEXITSTATUS(run_with("a.b@2=error", passes_twice)), 7);
  EXPECT_EQ(WEXITSTATUS(run_with("a.b@3=error;c@1=kill", passes_twice)), 0);
  EXPECT_EQ(WEXITSTATUS(run_with("a.b@1=sleep:1;a.b@2=error", passes_twice)), 7);
  const int killed = run_with("x@1=error;a.b@2=kill", passes_twice);
  EXPECT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL);
}

TEST(Failpoint, RefusesWhatItDoesNotKnow) {
  for (const char* text : {"a.b", "a.b@0=kill", "a.b@1=explode", "a.b=kill", "a@x=kill;"}) {
    EXPECT_EQ(WEXITSTATUS(run_with(text,
                                   [] {
                                     try {
                                       check_failpoints();
                                     } catch (const Error& error) {
                                       return error.code() == ErrorCode::kInvalidArgument ? 3 : 4;
                                     }
                                     return 0;
                                   })),
              3)
        << text;
  }
}

}  // namespace
}  // namespace nibble
