#include "coordinator/membership.h"

#include <gtest/gtest.h>

#include <thread>

#include "core/base/error.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

Member candidate(const std::string& address) {
  Member member;
  member.address = address;
  return member;
}

TEST(Membership, GivesTrainerRanksFirstThenEnginesThenRefuses) {
  Membership members(2, 1, 10s);
  EXPECT_EQ(members.join(candidate("a")).id, "trainer/0");
  EXPECT_EQ(members.join(candidate("b")).id, "trainer/1");
  EXPECT_EQ(members.join(candidate("c")).id, "rollout/0");
  EXPECT_THROW(members.join(candidate("d")), Error);
  EXPECT_EQ(members.trainers().size(), 2u);
  EXPECT_EQ(members.engines()[0].address, "c");
}

TEST(Membership, ColocatedWorkersAreTrainersAndEnginesUnderOneLease) {
  Membership members(2, 2, 10s, Placement::kColocated);
  EXPECT_EQ(members.join(candidate("a")).id, "worker/0");
  const Member second = members.join(candidate("b"));
  EXPECT_EQ(second.id, "worker/1");
  EXPECT_EQ(second.role, WorkerRole::kBoth);
  EXPECT_THROW(members.join(candidate("c")), Error);
  for (const auto& role : {members.trainers(), members.engines()}) {
    ASSERT_EQ(role.size(), 2u);
    EXPECT_EQ(role[1].address, "b");
    EXPECT_EQ(role[1].index, 1);
  }
  members.renew("worker/0");
  EXPECT_THROW(members.wait_complete(Deadline::after(20ms)), Error);
  members.renew("worker/1");
  members.wait_complete(Deadline::after(10s));
}

TEST(Membership, IsCompleteOnlyWhenAllServe) {
  Membership members(1, 1, 10s);
  members.join(candidate("a"));
  members.join(candidate("b"));
  members.renew("trainer/0");
  EXPECT_THROW(members.wait_complete(Deadline::after(20ms)), Error);
  std::jthread late([&] { members.renew("rollout/0"); });
  members.wait_complete(Deadline::after(10s));
}

TEST(Membership, ViewsTellAllMembersInOrderTheAgeOfTheirHeartbeatAndWhetherTheyAreUp) {
  Membership members(1, 1, 10s);
  EXPECT_TRUE(members.views().empty());
  members.join(candidate("a"));
  members.join(candidate("b"));
  members.renew("rollout/0");
  const std::vector<MemberView> views = members.views();
  ASSERT_EQ(views.size(), 2u);
  EXPECT_EQ(views[0].member.id, "trainer/0");
  EXPECT_EQ(views[1].member.address, "b");
  EXPECT_FALSE(views[0].is_up);
  EXPECT_TRUE(views[1].is_up);
  for (const MemberView& view : views) {
    EXPECT_GE(view.heartbeat_age, 0ms);
    EXPECT_LT(view.heartbeat_age, 10s);
  }
  EXPECT_GE(views[0].heartbeat_age, views[1].heartbeat_age) << "renewed later";
}

TEST(Membership, AnExpiredLeaseNamesTheWorkerAndCannotBeRenewed) {
  Membership members(1, 1, 1ms);
  members.join(candidate("a"));
  const Deadline later = Deadline::after(5ms);
  while (!later.expired()) std::this_thread::yield();
  try {
    members.check_leases();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    EXPECT_NE(std::string(error.what()).find("trainer/0"), std::string::npos);
  }
  EXPECT_THROW(members.renew("trainer/0"), Error);
  EXPECT_THROW(members.renew("trainer/9"), Error);
}

TEST(Membership, NamesAProcessByItsRoleOnceItHasJoined) {
  Membership members(1, 1, 10s);
  Member member = candidate("a");
  member.pid = 42;
  EXPECT_NE(members.describe_process(42).find("not joined"), std::string::npos);
  members.join(member);
  EXPECT_EQ(members.describe_process(42), "trainer/0 (pid 42)");
}

TEST(Membership, WaitsUntilEveryWorkerWasToldOfTheEnd) {
  Membership members(1, 1, 10s);
  for (const char* address : {"a", "b"}) members.join(candidate(address));
  for (const char* id : {"trainer/0", "rollout/0"}) members.renew(id);
  members.stop();
  EXPECT_FALSE(members.wait_told(Deadline::after(10ms)));  // nobody has asked since
  members.renew("trainer/0");
  EXPECT_FALSE(members.wait_told(Deadline::after(10ms)));
  std::thread asking([&] { members.renew("rollout/0"); });
  EXPECT_TRUE(members.wait_told(Deadline::after(10s)));
  asking.join();
}

TEST(Membership, ALostWorkerIsNotWaitedFor) {
  Membership members(1, 0, 0ms);  // run out as soon as it is given
  members.join(candidate("a"));
  members.stop();
  EXPECT_TRUE(members.wait_told(Deadline::after(10s)));
}

TEST(Membership, StopWakesWaiters) {
  Membership members(1, 1, 10s);
  std::jthread stopper([&] { members.stop(); });
  try {
    members.wait_complete(Deadline::after(10s));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCancelled);
  }
}

}  // namespace
}  // namespace nibble
