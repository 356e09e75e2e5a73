#include "coordinator/external_engines.h"

#include <gmock/gmock.h>

#include <condition_variable>

#include "core/base/error.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

ExternalEngine engine(const std::string& name, int64_t pid = 1, int64_t version = 0) {
  return {name, "host", pid, version, ""};
}

// The message of the refusal.
std::string refusal(ExternalEngines& engines, const ExternalEngine& candidate, ErrorCode code) {
  try {
    engines.follow(candidate);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "accepted";
}

TEST(ExternalEngines, NoneIsPermittedUnlessTheJobSaysSo) {
  ExternalEngines engines(0, 10s);
  EXPECT_THAT(refusal(engines, engine("a"), ErrorCode::kFailedPrecondition),
              HasSubstr("cluster.external_engines is 0"));
  EXPECT_TRUE(engines.views().empty());
}

TEST(ExternalEngines, AreKnownByNameWithWhatTheySaidLast) {
  ExternalEngines engines(2, 10s);
  engines.follow(engine("b"));
  engines.follow(engine("a"));
  ExternalEngine later = engine("b", 1, 7);
  later.last_failure = "line\none\x1b[31m" + std::string(1000, 'x');
  engines.follow(later);
  const auto views = engines.views();
  ASSERT_EQ(views.size(), 2u);
  EXPECT_EQ(views[0].engine.name, "a");
  EXPECT_EQ(views[1].engine.served_version, 7);
  EXPECT_EQ(views[1].engine.last_failure.size(), 500u);
  EXPECT_THAT(views[1].engine.last_failure, HasSubstr("line?one?[31m")) << "as a terminal takes it";
}

TEST(ExternalEngines, OneTooManyIsRefusedAndTheOthersStay) {
  ExternalEngines engines(1, 10s);
  engines.follow(engine("a"));
  EXPECT_THAT(refusal(engines, engine("b"), ErrorCode::kFailedPrecondition),
              HasSubstr("cluster.external_engines is 1"));
  engines.follow(engine("a"));
  EXPECT_EQ(engines.views().size(), 1u);
}

TEST(ExternalEngines, ANameBelongsToOneProcess) {
  ExternalEngines engines(2, 10s);
  engines.follow(engine("a", 1));
  EXPECT_THAT(refusal(engines, engine("a", 2), ErrorCode::kFailedPrecondition),
              HasSubstr("take another name"));
}

TEST(ExternalEngines, NamesAndVersionsThatAreNoneAreRefused) {
  ExternalEngines engines(2, 10s);
  for (const std::string& name :
       {std::string(), std::string("a b"), std::string("a\n"), std::string(65, 'a')}) {
    EXPECT_THAT(refusal(engines, engine(name), ErrorCode::kInvalidArgument),
                HasSubstr("is no name"));
  }
  EXPECT_THAT(refusal(engines, engine("a", 1, -1), ErrorCode::kInvalidArgument),
              HasSubstr("version -1"));
  engines.follow(engine(std::string(64, 'a')));
}

TEST(ExternalEngines, OneThatIsSilentForALeaseIsForgottenAndMayComeBack) {
  ExternalEngines engines(1, 20ms);
  engines.follow(engine("a"));
  std::mutex mutex;
  std::condition_variable never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, 40ms);
  EXPECT_TRUE(engines.views().empty());
  engines.follow(engine("b"));  // its place is free
  never.wait_for(lock, 40ms);
  engines.follow(engine("a", 2));  // and so is its name
  EXPECT_EQ(engines.views().size(), 1u);
}

}  // namespace
}  // namespace nibble
