#include "rollout/reward/reward_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <thread>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kHasSanitizer = true;
#else
constexpr bool kHasSanitizer = false;
#endif

namespace nibble {
namespace {

using std::chrono::milliseconds;

RewardProcessOptions options_of(const std::vector<std::string>& arguments) {
  RewardProcessOptions options;
  options.command = {NIBBLE_BINARY_DIR "/tests/reward_test_worker"};
  options.command.insert(options.command.end(), arguments.begin(), arguments.end());
  options.start_timeout = milliseconds(20'000);
  options.sample_timeout = milliseconds(20'000);
  options.limits.max_memory_bytes = 256 << 20;
  options.limits.max_address_space_bytes = 1LL << 30;
  return options;
}

std::vector<RewardSample> samples_of(const std::vector<std::string>& responses) {
  std::vector<RewardSample> samples;
  samples.reserve(responses.size());
  for (const std::string& response : responses) samples.push_back({response, "label"});
  return samples;
}

double score_of(const RewardOutcome& outcome) {
  if (const auto* error = std::get_if<Error>(&outcome)) {
    ADD_FAILURE() << error->what();
    return -1;
  }
  return std::get<double>(outcome);
}

ErrorCode code_of(const RewardOutcome& outcome) {
  if (std::holds_alternative<Error>(outcome)) return std::get<Error>(outcome).code();
  ADD_FAILURE() << "scored " << std::get<double>(outcome);
  return ErrorCode::kInternal;
}

int count_descriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

bool has_children() { return ::waitpid(-1, nullptr, WNOHANG) >= 0 || errno != ECHILD; }

/// A path that does not exist; nothing is left there.
class ScratchName {
 public:
  explicit ScratchName(const std::string& name)
      : path_(std::filesystem::temp_directory_path() /
              ("nibble_" + name + "_" + std::to_string(::getpid()))) {
    std::filesystem::remove(path_);
  }
  ~ScratchName() { std::filesystem::remove(path_); }
  std::string string() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

/// Scores {"good", order, "longer"}: expects the neighbours of `order` to have their scores.
RewardOutcome outcome_of(RewardProcess& process, const std::string& order) {
  const auto outcomes = process.score(samples_of({"good", order, "longer"}));
  EXPECT_EQ(score_of(outcomes[0]), 4);
  EXPECT_EQ(score_of(outcomes[2]), 6);
  return outcomes[1];
}

TEST(RewardProcess, ScoresWithTheRealScorerInOrder) {
  RewardProcess process(options_of({"real", "last_number"}));
  std::vector<RewardSample> samples;
  samples.reserve(500);
  for (int i = 0; i < 500; ++i) {
    samples.push_back({"the answer is " + std::to_string(i), i % 3 == 0 ? i : -1});
  }
  for (int round = 0; round < 2; ++round) {
    const auto outcomes = process.score(samples);
    ASSERT_EQ(outcomes.size(), samples.size());
    for (int i = 0; i < 500; ++i) EXPECT_EQ(score_of(outcomes[i]), i % 3 == 0 ? 1 : 0) << i;
  }
  EXPECT_TRUE(process.score({}).empty());
  EXPECT_EQ(process.num_restarts(), 0);
}

TEST(RewardProcess, SendsResponsesLargerThanTheSocketWithoutDeadlock) {
  RewardProcess process(options_of({"faulty"}));
  const std::vector<std::string> responses(20, std::string(1 << 20, 'x'));
  for (const RewardOutcome& outcome : process.score(samples_of(responses))) {
    EXPECT_EQ(score_of(outcome), 1 << 20);
  }
}

TEST(RewardProcess, AHangIsADeadlineErrorAfterOneRetry) {
  RewardProcessOptions options = options_of({"faulty"});
  options.sample_timeout = milliseconds(300);
  RewardProcess process(options);
  EXPECT_EQ(code_of(outcome_of(process, "hang")), ErrorCode::kDeadlineExceeded);
  EXPECT_EQ(process.num_restarts(), 2);
}

TEST(RewardProcess, CrashesExitsAndGarbageAreUnavailableAfterOneRetry) {
  RewardProcess process(options_of({"faulty"}));
  int64_t num_restarts = 0;
  for (const char* order : {"crash", "exit", "garbage", "endless", "wrong id"}) {
    EXPECT_EQ(code_of(outcome_of(process, order)), ErrorCode::kUnavailable) << order;
    num_restarts += 2;
    EXPECT_EQ(process.num_restarts(), num_restarts) << order;
  }
}

TEST(RewardProcess, AMemoryBombHitsTheLimitNotTheMachine) {
  if (kHasSanitizer) GTEST_SKIP() << "address space limits do not go with sanitizers";
  RewardProcess process(options_of({"faulty"}));
  EXPECT_EQ(code_of(outcome_of(process, "bomb")), ErrorCode::kUnavailable);
}

TEST(RewardProcess, TheRetryCounts) {
  RewardProcess process(options_of({"faulty"}));
  const ScratchName mark("crash_mark");
  const std::string order = "crash once " + mark.string();
  EXPECT_EQ(score_of(outcome_of(process, order)), static_cast<double>(order.size()));
  EXPECT_EQ(process.num_restarts(), 1);
}

TEST(RewardProcess, TheScorersOwnErrorsAreNotRetried) {
  RewardProcess process(options_of({"faulty"}));
  EXPECT_EQ(code_of(outcome_of(process, "refuse")), ErrorCode::kInvalidArgument);
  const std::string too_long((4 << 20) + 1, 'x');
  EXPECT_EQ(code_of(outcome_of(process, too_long)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(process.num_restarts(), 0);
}

TEST(RewardProcess, TheWorkerGetsNothingOfOurs) {
  const int open_fd = ::open("/dev/null", O_RDONLY);  // without close-on-exec
  RewardProcess process(options_of({"faulty"}));
  const ScratchName file("reward_write");
  const auto outcomes = process.score(
      samples_of({"descriptors", "environment", "core limit", "write " + file.string()}));
  EXPECT_EQ(score_of(outcomes[0]), 3);
  EXPECT_EQ(score_of(outcomes[1]), 2);
  EXPECT_EQ(score_of(outcomes[2]), 0);
  EXPECT_EQ(score_of(outcomes[3]), 0);
  ::close(open_fd);
}

TEST(RewardProcess, LeavesNoDescriptorAndNoZombie) {
  const int before = count_descriptors();
  {
    RewardProcess process(options_of({"faulty"}));
    process.score(samples_of({"crash", "exit", "garbage", "fine"}));
    EXPECT_EQ(count_descriptors(), before + 1);
  }
  EXPECT_THROW(RewardProcess(options_of({"chatty"})), Error);
  EXPECT_EQ(count_descriptors(), before);
  EXPECT_FALSE(has_children());
}

TEST(RewardProcess, AWorkerKilledBetweenBatchesIsReplaced) {
  RewardProcess process(options_of({"faulty"}));
  const pid_t first = process.pid();
  ::kill(first, SIGKILL);
  EXPECT_EQ(score_of(process.score(samples_of({"good"}))[0]), 4);
  EXPECT_NE(process.pid(), first);
}

ErrorCode start_error(const RewardProcessOptions& options) {
  try {
    RewardProcess process(options);
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "started";
  return ErrorCode::kInternal;
}

TEST(RewardProcess, SaysWhyAWorkerDoesNotStart) {
  EXPECT_EQ(start_error(options_of({"chatty"})), ErrorCode::kUnavailable);
  EXPECT_EQ(start_error(options_of({"real", "no such type"})), ErrorCode::kUnavailable);
  RewardProcessOptions silent = options_of({"silent"});
  silent.start_timeout = milliseconds(100);
  EXPECT_EQ(start_error(silent), ErrorCode::kDeadlineExceeded);
  RewardProcessOptions missing = options_of({});
  missing.command = {"/nonexistent/nibble"};
  EXPECT_EQ(start_error(missing), ErrorCode::kUnavailable);
  missing.command = {};
  EXPECT_EQ(start_error(missing), ErrorCode::kInvalidArgument);
}

TEST(RewardProcess, TheWorkerDiesWithTheThreadThatStartedIt) {
  pid_t pid = -1;
  std::unique_ptr<RewardProcess> process;
  std::thread([&] {
    process = std::make_unique<RewardProcess>(options_of({"faulty"}));
    pid = process->pid();
  }).join();
  siginfo_t info{};
  // Waits for its end without reaping it; the test's time limit bounds the wait.
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  EXPECT_EQ(info.si_status, SIGKILL);
}

}  // namespace
}  // namespace nibble
