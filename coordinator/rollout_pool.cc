#include "coordinator/rollout_pool.h"

#include <algorithm>
#include <functional>
#include <iterator>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/base/parallel_calls.h"

namespace nibble {

RolloutPool::RolloutPool(std::vector<RolloutClient*> engines, std::chrono::milliseconds timeout)
    : timeout_(timeout), engines_(engines.size()) {
  constexpr int kCollectorsAnEngine = 2;
  for (size_t e = 0; e < engines.size(); ++e) {
    engines_[e].client = engines[e];
    for (int i = 0; i < kCollectorsAnEngine; ++i) {
      collectors_.push_back(std::make_unique<BackgroundTask>(
          [this, e](const std::stop_token& stop) { collect(e, stop); }));
    }
  }
}

RolloutPool::~RolloutPool() {
  for (auto& collector : collectors_) collector->request_stop();
}

void RolloutPool::collect(size_t index, const std::stop_token& stop) {
  Engine& engine = engines_[index];
  std::unique_lock lock(mutex_);
  while (
      changed_.wait(lock, stop, [&] { return runs_ && !engine.failure && !engine.open.empty(); })) {
    if (stop.stop_requested()) return;
    lock.unlock();
    std::optional<CollectResult> result;
    std::exception_ptr failure;
    try {
      result = engine.client->collect(kWait, timeout_);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (result) take(engine, *std::move(result));
    // What an engine that was left behind has to say is of no interest: its groups are elsewhere.
    if (failure && engine.serves && !stop.stop_requested()) engine.failure = failure;
    changed_.notify_all();
  }
}

void RolloutPool::take(Engine& engine, CollectResult result) {
  engine.figures += result.figures;
  for (GroupResult& group : result.groups) {
    const auto open = engine.open.find({group.evaluation, group.source.prompt_id});
    if (open != engine.open.end()) {
      if (open->second.prompt.attempt != group.attempt) continue;  // it has begun anew meanwhile
      engine.open.erase(open);
      done_.push_back(std::move(group));
    } else if (!group.evaluation) {
      engine.released.insert(group.source.prompt_id);  // given up, or begun anew elsewhere
    }
  }
}

RolloutPool::Lost RolloutPool::set_serving(const std::vector<int>& engines, int64_t version,
                                           std::set<std::string> holders) {
  if (engines.empty()) fail(ErrorCode::kUnavailable, "no engine serves version {}", version);
  std::vector<Pending> moved;
  std::vector<RolloutClient*> behind;
  {
    const std::lock_guard lock(mutex_);
    for (const GroupResult& group : done_) holders.insert(group.source.engine_address);
    for (size_t e = 0; e < engines_.size(); ++e) {
      Engine& engine = engines_[e];
      engine.serves =
          std::find(engines.begin(), engines.end(), static_cast<int>(e)) != engines.end();
      if (engine.serves) continue;
      engine.failure = nullptr;
      if (holders.contains(engine.client->member().address)) behind.push_back(engine.client);
      for (auto& [name, pending] : engine.open) {
        DrawSettings settings = *pending.settings;
        settings.weight_version = version;
        moved.push_back(
            {std::move(pending.prompt), std::make_shared<const DrawSettings>(settings)});
        if (!name.first) engine.released.insert(name.second);
      }
      engine.open.clear();
    }
  }
  if (!moved.empty()) {
    get_logger("run")->warn("{} groups begin anew: their engine was left behind", moved.size());
    distribute(std::move(moved));
  }
  return lose_groups_of(behind);
}

RolloutPool::Lost RolloutPool::lose_groups_of(const std::vector<RolloutClient*>& engines) {
  Lost lost;
  for (RolloutClient* engine : engines) {
    try {
      (void)engine->status(kSoon);
    } catch (const Error&) {
      lost.engines.insert(engine->member().address);
    }
  }
  const std::lock_guard lock(mutex_);
  std::erase_if(done_, [&](const GroupResult& group) {
    const bool is_lost = lost.engines.contains(group.source.engine_address);
    if (is_lost && !group.evaluation) lost.prompt_ids.push_back(group.source.prompt_id);
    return is_lost;
  });
  return lost;
}

void RolloutPool::submit(const std::vector<PromptTask>& prompts, const DrawSettings& settings) {
  const auto shared = std::make_shared<const DrawSettings>(settings);
  std::vector<Pending> pending;
  for (const PromptTask& prompt : prompts) pending.push_back({prompt, shared});
  distribute(std::move(pending));
}

void RolloutPool::distribute(std::vector<Pending> pending) {
  struct Share {
    std::vector<Pending> prompts;
    std::vector<uint64_t> released;
  };
  std::vector<Share> shares(engines_.size());
  {
    const std::lock_guard lock(mutex_);
    for (Pending& one : pending) {
      size_t least = engines_.size();
      for (size_t e = 0; e < engines_.size(); ++e) {
        if (!engines_[e].serves) continue;
        if (least == engines_.size() || engines_[e].open.size() < engines_[least].open.size()) {
          least = e;
        }
      }
      NIBBLE_CHECK(least < engines_.size(), "prompts for no engine");
      const Name name{one.settings->evaluation, one.prompt.prompt_id};
      if (!name.first) engines_[least].released.erase(name.second);  // what it has begins anew
      one.prompt.attempt = ++num_attempts_;
      engines_[least].open[name] = one;
      shares[least].prompts.push_back(std::move(one));
    }
    for (size_t e = 0; e < shares.size(); ++e) {
      if (shares[e].prompts.empty()) continue;
      shares[e].released.assign(engines_[e].released.begin(), engines_[e].released.end());
      engines_[e].released.clear();
    }
  }
  std::vector<std::function<void()>> calls;
  for (size_t e = 0; e < shares.size(); ++e) {
    if (shares[e].prompts.empty()) continue;
    calls.emplace_back([this, &share = shares[e], &client = *engines_[e].client] {
      if (!share.released.empty()) client.release(share.released, timeout_);
      // Prompts of one kind of draw in a row go together.
      for (size_t begin = 0; begin < share.prompts.size();) {
        const auto settings = share.prompts[begin].settings;
        std::vector<PromptTask> prompts;
        while (begin < share.prompts.size() && share.prompts[begin].settings == settings) {
          prompts.push_back(std::move(share.prompts[begin++].prompt));
        }
        client.submit(prompts, *settings, timeout_);
      }
    });
  }
  run_parallel(calls);
  changed_.notify_all();
}

GroupResult RolloutPool::next(bool evaluation, Deadline deadline) {
  std::unique_lock lock(mutex_);
  auto found = done_.end();
  const auto has_one = [&] {
    found = std::find_if(done_.begin(), done_.end(),
                         [&](const GroupResult& group) { return group.evaluation == evaluation; });
    const bool has_failed = std::any_of(engines_.begin(), engines_.end(), [](const Engine& engine) {
      return engine.failure != nullptr;
    });
    return has_failed || found != done_.end();
  };
  if (!changed_.wait_until(lock, deadline.time(), has_one)) {
    fail(ErrorCode::kDeadlineExceeded, "no group became whole in time");
  }
  for (const Engine& engine : engines_) {
    if (engine.failure) std::rethrow_exception(engine.failure);
  }
  GroupResult group = std::move(*found);
  done_.erase(found);
  return group;
}

RolloutPool::Open RolloutPool::open() const {
  const std::lock_guard lock(mutex_);
  Open open;
  for (const Engine& engine : engines_) {
    for (const auto& [name, pending] : engine.open) {
      if (!name.first) open.unfinished.push_back(name.second);
    }
  }
  std::sort(open.unfinished.begin(), open.unfinished.end());
  std::copy_if(done_.begin(), done_.end(), std::back_inserter(open.whole),
               [](const GroupResult& group) { return !group.evaluation; });
  return open;
}

int64_t RolloutPool::num_open() const {
  const std::lock_guard lock(mutex_);
  int64_t count = 0;
  for (const Engine& engine : engines_) {
    count += std::count_if(engine.open.begin(), engine.open.end(),
                           [](const auto& entry) { return !entry.first.first; });
  }
  return count + std::count_if(done_.begin(), done_.end(),
                               [](const GroupResult& group) { return !group.evaluation; });
}

RolloutClient& RolloutPool::engine_of(const GroupSource& source) {
  for (const Engine& engine : engines_) {
    if (engine.client->member().address == source.engine_address) return *engine.client;
  }
  fail(ErrorCode::kInternal, "no engine has prompt {}: {}", source.prompt_id,
       source.engine_address);
}

SavedGroup RolloutPool::fetch(const GroupResult& group) {
  return {group, engine_of(group.source).fetch_group(group.source.prompt_id, kFetch)};
}

void RolloutPool::adopt(SavedGroup saved) {
  RolloutClient* client = nullptr;
  {
    const std::lock_guard lock(mutex_);
    // In turn, and only engines that have a scheduler: of one of several ranks the first.
    while (client == nullptr) {
      const Engine& engine = engines_[num_adopted_++ % engines_.size()];
      if (engine.serves) client = engine.client;
    }
  }
  client->restore_group(saved.parts, timeout_);
  saved.group.source.engine_address = client->member().address;
  const std::lock_guard lock(mutex_);
  done_.push_back(std::move(saved.group));
}

int64_t RolloutPool::drop_open() {
  int64_t dropped = 0;
  std::vector<std::pair<RolloutClient*, std::vector<uint64_t>>> ended;
  {
    const std::lock_guard lock(mutex_);
    for (Engine& engine : engines_) {
      std::vector<uint64_t> ids;
      std::erase_if(engine.open, [&](const auto& entry) {
        if (entry.first.first) return false;
        ids.push_back(entry.first.second);
        return true;
      });
      dropped += std::ssize(ids);
      if (!ids.empty()) ended.emplace_back(engine.client, std::move(ids));
    }
  }
  // At once: what is still under way would be computed beside the next prompts.
  std::vector<std::function<void()>> calls;
  for (const auto& [client, ids] : ended) {
    calls.emplace_back([this, client = client, &ids = ids] { client->release(ids, timeout_); });
  }
  run_parallel(calls);
  std::vector<GroupSource> whole;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(done_, [&](const GroupResult& group) {
      if (!group.evaluation) whole.push_back(group.source);
      return !group.evaluation;
    });
  }
  release(whole);
  return dropped + std::ssize(whole);
}

void RolloutPool::release(const std::vector<GroupSource>& groups) {
  const std::lock_guard lock(mutex_);
  for (const GroupSource& group : groups) {
    for (Engine& engine : engines_) {
      if (engine.client->member().address == group.engine_address) {
        engine.released.insert(group.prompt_id);
      }
    }
  }
}

void RolloutPool::run(bool runs) {
  {
    const std::lock_guard lock(mutex_);
    runs_ = runs;
  }
  changed_.notify_all();
}

EngineFigures RolloutPool::take_figures() {
  const std::lock_guard lock(mutex_);
  EngineFigures all;
  EngineFigures longest;
  for (Engine& engine : engines_) {
    longest.generate_ms = std::max(longest.generate_ms, engine.figures.generate_ms);
    longest.reward_ms = std::max(longest.reward_ms, engine.figures.reward_ms);
    longest.draft_ms = std::max(longest.draft_ms, engine.figures.draft_ms);
    all += std::exchange(engine.figures, {});
  }
  all.generate_ms = longest.generate_ms;
  all.reward_ms = longest.reward_ms;
  all.draft_ms = longest.draft_ms;
  return all;
}

}  // namespace nibble
