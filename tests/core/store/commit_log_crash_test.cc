#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "core/store/run_store.h"
#include "tests/core/store/store_directory.h"

namespace nibble {
namespace {

struct Report {
  int64_t version;
  int64_t decision;
};

std::vector<std::string> members_of(int64_t version) {
  return {"rollout/0", "rollout/" + std::to_string(version), std::string(300, 'm')};
}

/// The child: publishes versions for ever and reports each decision once it is durable.
[[noreturn]] void publish_for_ever(const std::filesystem::path& path, int report_fd) {
  try {
    RunStore store(path);
    const auto log = store.versions();
    for (int64_t version = log.empty() ? 1 : log.back().version + 1;; ++version) {
      const Decision last = version % 5 == 0 ? Decision::kAborted : Decision::kCommitted;
      for (const Decision decision : {Decision::kPrepared, last}) {
        store.record_version({.version = version,
                              .epoch = 3,
                              .step = version * 2,
                              .decision = decision,
                              .members = members_of(version),
                              .digest = std::to_string(version * 7919),
                              .created_at_ms = version});
        const Report report{version, static_cast<int64_t>(decision)};
        if (::write(report_fd, &report, sizeof report) != sizeof report) ::_exit(3);
      }
    }
  } catch (const std::exception&) {
    ::_exit(4);  // the parent sees that the reports end and that SIGKILL was not the reason
  }
}

class CommitLogCrash : public StoreDirectory {
 protected:
  /// Starts a child, kills it after `num_reports` and returns all that it reported.
  std::vector<Report> run_and_kill(int num_reports) const {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(ends[0]);
      publish_for_ever(path(), ends[1]);
    }
    ::close(ends[1]);
    std::vector<Report> reports;
    Report report{};
    while (::read(ends[0], &report, sizeof report) == sizeof report) {
      reports.push_back(report);
      if (static_cast<int>(reports.size()) == num_reports) ::kill(child, SIGKILL);
    }
    ::close(ends[0]);
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    return reports;
  }
};

TEST_F(CommitLogCrash, EveryReportedDecisionSurvivesSigkillInOrderAndWhole) {
  std::vector<Report> reported;
  for (const int num_reports : {1, 7, 40, 23, 64}) {
    const auto reports = run_and_kill(num_reports);
    ASSERT_GE(static_cast<int>(reports.size()), num_reports);
    reported.insert(reported.end(), reports.begin(), reports.end());

    const RunStore store(path());
    const auto log = store.versions();
    size_t next = 0;
    for (const VersionRecord& record : log) {
      EXPECT_EQ(record.members, members_of(record.version));
      EXPECT_EQ(record.digest, std::to_string(record.version * 7919));
      EXPECT_EQ(record.step, record.version * 2);
      const bool is_reported = next < reported.size() && reported[next].version == record.version &&
                               reported[next].decision == static_cast<int64_t>(record.decision);
      if (is_reported) ++next;
    }
    // What is in the log beyond the reports: at most the one decision each child died after.
    EXPECT_EQ(next, reported.size());
  }
  const RunStore store(path());
  EXPECT_LE(store.versions().size(), reported.size() + 5);
}

}  // namespace
}  // namespace nibble
