// The pool between real gRPC servers: engines whose groups become whole after a while, in any
// order.
#include "coordinator/rollout_pool.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <random>
#include <set>
#include <thread>

#include "core/base/fail.h"
#include "core/rpc/server.h"
#include "core/rpc/status.h"
#include "proto/nibble.grpc.pb.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

// Does what docs/decisions/0014-schedules.md asks of an engine, without a model.
class FakeEngine final : public v1::Rollout::Service {
 public:
  explicit FakeEngine(int number)
      : server_(RpcServerOptions(), std::array<grpc::Service*, 1>{this}) {
    member_ = {WorkerRole::kRollout, number, fmt::format("rollout/{}", number), server_.address()};
    client_ = std::make_unique<RolloutClient>(member_);
  }
  RolloutClient* client() { return client_.get(); }

  grpc::Status Submit(grpc::ServerContext*, const v1::SubmitRequest* request, v1::Empty*) override {
    const std::lock_guard lock(mutex_);
    for (const v1::Prompt& prompt : request->prompts()) {
      std::erase_if(open_, [&](const v1::GroupSummary& group) {
        return group.evaluation() == request->evaluation() &&
               group.prompt_id() == prompt.prompt_id();
      });
      v1::GroupSummary& group = open_.emplace_back();
      group.set_prompt_id(prompt.prompt_id());
      group.set_attempt(prompt.attempt());
      group.set_evaluation(request->evaluation());
      v1::SampleSummary& sample = *group.add_samples();
      sample.set_prompt_id(prompt.prompt_id());
      sample.set_oldest_version(request->weight_version());
      if (prompt.prompt_id() % 5 == 4) sample.set_error("cannot be scored");
    }
    changed_.notify_all();
    return {};
  }
  grpc::Status Collect(grpc::ServerContext*, const v1::CollectRequest* request,
                       v1::CollectResponse* response) override {
    if (is_broken) return to_status(Error(ErrorCode::kInternal, "the engine is broken"));
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(request->wait_ms()),
                        [&] { return !open_.empty(); });
      if (open_.empty()) return {};
      // Any of them, like samples of any length.
      const size_t which = next_random() % open_.size();
      std::swap(open_[which], open_.front());
      *response->add_groups() = std::move(open_.front());
      open_.pop_front();
    }
    std::this_thread::sleep_for(std::chrono::microseconds(next_random() % 300));  // scoring
    const std::lock_guard lock(mutex_);
    if (!response->groups(0).evaluation()) kept_.insert(response->groups(0).prompt_id());
    response->set_guessed_tokens(1);
    return {};
  }
  grpc::Status Release(grpc::ServerContext*, const v1::ReleaseRequest* request,
                       v1::Empty*) override {
    const std::lock_guard lock(mutex_);
    for (const uint64_t id : request->prompt_ids()) {
      kept_.erase(id);
      std::erase_if(open_, [&](const v1::GroupSummary& group) {
        return !group.evaluation() && group.prompt_id() == id;
      });
    }
    return {};
  }
  grpc::Status Status(grpc::ServerContext*, const v1::Empty*, v1::EngineStatus*) override {
    if (is_silent) return to_status(Error(ErrorCode::kUnavailable, "gone"));
    return {};
  }

  std::set<uint64_t> kept() const {
    const std::lock_guard lock(mutex_);
    return kept_;
  }
  std::atomic<bool> is_broken = false;
  std::atomic<bool> is_silent = false;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<v1::GroupSummary> open_;  // guarded by mutex_, like the next
  std::set<uint64_t> kept_;
  std::atomic<uint32_t> seed_ = 1;
  uint32_t next_random() { return seed_ = seed_ * 1664525u + 1013904223u; }
  Member member_;
  std::unique_ptr<RolloutClient> client_;
  RpcServer server_;  // last member
};

class RolloutPoolTest : public ::testing::Test {
 protected:
  void start(int count) {
    std::vector<RolloutClient*> clients;
    for (int e = 0; e < count; ++e) {
      engines_.push_back(std::make_unique<FakeEngine>(e));
      clients.push_back(engines_.back()->client());
    }
    pool_ = std::make_unique<RolloutPool>(clients, 20s);
  }
  void submit(uint64_t first, int count, bool evaluation = false) {
    std::vector<PromptTask> prompts;
    for (int i = 0; i < count; ++i) prompts.push_back({first + static_cast<uint64_t>(i), "1", "1"});
    DrawSettings settings;
    settings.weight_version = 1;
    settings.evaluation = evaluation;
    pool_->submit(prompts, settings);
  }
  std::vector<GroupResult> take(int count, bool evaluation = false) {
    std::vector<GroupResult> groups;
    for (int i = 0; i < count; ++i) {
      groups.push_back(pool_->next(evaluation, Deadline::after(20s)));
    }
    return groups;
  }
  void release(const std::vector<GroupResult>& groups) {
    std::vector<GroupSource> sources;
    for (const GroupResult& group : groups) sources.push_back(group.source);
    pool_->release(sources);
  }
  static std::set<uint64_t> ids(const std::vector<GroupResult>& groups) {
    std::set<uint64_t> ids;
    for (const GroupResult& group : groups) ids.insert(group.source.prompt_id);
    return ids;
  }

  std::vector<std::unique_ptr<FakeEngine>> engines_;
  std::unique_ptr<RolloutPool> pool_;  // goes first
};

TEST_F(RolloutPoolTest, EveryGroupComesOnceAndNothingStaysBehind) {
  start(3);
  std::set<uint64_t> seen;
  for (uint64_t round = 0; round < 30; ++round) {
    submit(round * 20, 20);
    submit(0, 6, true);  // an evaluation whose prompts have the ids of some of training
    EXPECT_EQ(take(6, true).size(), 6u);
    const auto groups = take(20);
    for (const uint64_t id : ids(groups)) EXPECT_TRUE(seen.insert(id).second) << id;
    release(groups);
  }
  EXPECT_EQ(seen.size(), 600u);
  EXPECT_EQ(pool_->num_open(), 0);
  EXPECT_EQ(pool_->take_figures().guessed_tokens, 30 * 26);
  // Engines are told with the next prompts; what is left is at most those.
  submit(1000, 9);
  const auto last = ids(take(9));
  for (const auto& engine : engines_) {
    for (const uint64_t id : engine->kept()) EXPECT_TRUE(last.contains(id)) << id;
  }
}

TEST_F(RolloutPoolTest, WhatIsOpenIsOneMomentsAndCanBeDropped) {
  start(2);
  submit(0, 40);
  for (int look = 0; look < 50; ++look) {
    const RolloutPool::Open open = pool_->open();
    std::set<uint64_t> all(open.unfinished.begin(), open.unfinished.end());
    for (const uint64_t id : ids(open.whole)) EXPECT_TRUE(all.insert(id).second) << id;
    ASSERT_EQ(all.size(), 40u) << "a group that is neither under way nor whole";
  }
  release(take(10));
  EXPECT_EQ(pool_->drop_open(), 30);
  EXPECT_EQ(pool_->num_open(), 0);
  submit(100, 4);
  EXPECT_EQ(ids(take(4)), (std::set<uint64_t>{100, 101, 102, 103}));
}

TEST_F(RolloutPoolTest, APausedPoolKeepsWhatItHas) {
  start(1);
  pool_->run(false);
  submit(0, 5);
  EXPECT_THROW((void)pool_->next(false, Deadline::after(150ms)), Error);
  EXPECT_EQ(pool_->num_open(), 5);
  pool_->run(true);
  EXPECT_EQ(take(5).size(), 5u);
}

TEST_F(RolloutPoolTest, GroupsMoveBetweenEnginesAndComeOnce) {
  start(3);
  std::mt19937 random(7);
  std::set<uint64_t> seen;
  for (uint64_t round = 0; round < 40; ++round) {
    submit(round * 12, 12);
    std::vector<int> serving = {0, 1, 2};
    std::shuffle(serving.begin(), serving.end(), random);
    serving.resize(1 + random() % 3);
    EXPECT_TRUE(pool_->set_serving(serving, 2, {}).engines.empty()) << "all answer";
    const auto groups = take(12);
    for (const uint64_t id : ids(groups)) EXPECT_TRUE(seen.insert(id).second) << id;
    release(groups);
  }
  EXPECT_EQ(seen.size(), 480u);
  EXPECT_EQ(pool_->num_open(), 0);
  EXPECT_THROW((void)pool_->set_serving({}, 2, {}), Error);
}

TEST_F(RolloutPoolTest, WhatAnEngineHeldThatDoesNotAnswerIsLostAndSaid) {
  start(2);
  submit(0, 10);
  const Deadline deadline = Deadline::after(20s);
  while (pool_->open().whole.size() < 10 && !deadline.expired()) std::this_thread::yield();
  engines_[1]->is_silent = true;
  const std::string address = engines_[1]->client()->member().address;
  const RolloutPool::Lost lost = pool_->set_serving({0}, 2, {});
  EXPECT_EQ(lost.engines, std::set<std::string>{address});
  EXPECT_EQ(lost.prompt_ids.size(), 5u);
  EXPECT_EQ(pool_->open().whole.size(), 5u);
  // It is asked again only while somebody wants something from it.
  EXPECT_TRUE(pool_->set_serving({0}, 2, {}).engines.empty());
  EXPECT_EQ(pool_->set_serving({0}, 2, {address}).engines.size(), 1u);
}

TEST_F(RolloutPoolTest, WhatAnEngineThrowsIsThrownUntilItIsLeftBehind) {
  start(2);
  engines_[0]->is_broken = true;
  submit(0, 8);
  try {
    for (int i = 0; i < 8; ++i) (void)pool_->next(false, Deadline::after(20s));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("the engine is broken"), std::string::npos);
  }
  (void)pool_->set_serving({1}, 2, {});
  submit(100, 3);
  std::set<uint64_t> seen;
  while (pool_->num_open() > 0) seen.merge(ids(take(1)));
  EXPECT_TRUE(seen.contains(100));
  EXPECT_TRUE(seen.contains(102));
}

}  // namespace
}  // namespace nibble
