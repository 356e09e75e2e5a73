#include "coordinator/rollout_feed.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/log.h"

namespace nibble {

RolloutFeed::RolloutFeed(const SamplingPlan& plan, const DrawSettings& settings, PromptAt prompt_at,
                         RolloutPool& pool)
    : plan_(plan), settings_(settings), prompt_at_(std::move(prompt_at)), pool_(pool) {}

void RolloutFeed::restore(const std::string& state, int64_t steps) {
  next_place_ = steps * plan_.prompts_per_step;
  if (state.empty()) return;
  try {
    const Json json = parse_json(state, "rollout state");
    next_place_ = json.at("next_prompt").get<int64_t>();
    again_ = json.at("unfinished").get<std::deque<int64_t>>();
    saved_ = json.at("saved").get<std::vector<int64_t>>();
    saved_sha256_ = json.at("saved_sha256").get<std::string>();
    for (const Json& entry : json.at("versions")) {
      step_of_[entry.at(0).get<int64_t>()] = entry.at(1).get<int64_t>();
    }
    counts_.filtered_groups = json.at("filtered_groups").get<int64_t>();
    counts_.stale_groups = json.at("stale_groups").get<int64_t>();
    counts_.dropped_groups = json.at("dropped_groups").get<int64_t>();
  } catch (const Json::exception& error) {
    fail(ErrorCode::kDataLoss, "the checkpoint's rollout state cannot be read: {}", error.what());
  }
  const auto is_place = [&](int64_t place) { return place >= 0 && place < next_place_; };
  if (next_place_ < 0 || !std::all_of(again_.begin(), again_.end(), is_place) ||
      !std::all_of(saved_.begin(), saved_.end(), is_place)) {
    fail(ErrorCode::kDataLoss, "the checkpoint's rollout state names prompts that never were");
  }
}

void RolloutFeed::restore_groups(const std::filesystem::path& file) {
  if (saved_.empty()) return;
  try {
    read_saved_groups(file, saved_sha256_,
                      [this](SavedGroup saved) { pool_.adopt(std::move(saved)); });
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kDataLoss && error.code() != ErrorCode::kNotFound) throw;
    get_logger("run")->warn("{} groups are drawn again: {}", saved_.size(), error.what());
    again_.insert(again_.begin(), saved_.begin(), saved_.end());
  }
  saved_.clear();
}

std::string RolloutFeed::save(const std::filesystem::path& file) {
  RolloutPool::Open open = pool_.open();
  std::vector<GroupResult> whole = ready_;
  std::move(open.whole.begin(), open.whole.end(), std::back_inserter(whole));
  std::vector<int64_t> unfinished(again_.begin(), again_.end());
  unfinished.insert(unfinished.end(), open.unfinished.begin(), open.unfinished.end());
  std::vector<int64_t> saved;
  std::string sha256;
  if (!whole.empty()) {
    SavedGroupsWriter writer(file);
    for (const GroupResult& group : whole) {
      writer.write(pool_.fetch(group));
      saved.push_back(static_cast<int64_t>(group.source.prompt_id));
    }
    sha256 = writer.finish();
  }
  Json versions = Json::array();
  for (const auto& [version, step] : step_of_) versions.push_back({version, step});
  return Json{{"next_prompt", next_place_},
              {"unfinished", unfinished},
              {"saved", saved},
              {"saved_sha256", sha256},
              {"versions", versions},
              {"filtered_groups", counts_.filtered_groups},
              {"stale_groups", counts_.stale_groups},
              {"dropped_groups", counts_.dropped_groups}}
      .dump();
}

void RolloutFeed::set_serving(const std::vector<int>& engines, int64_t version) {
  std::set<std::string> holders;
  for (const GroupResult& group : ready_) holders.insert(group.source.engine_address);
  const RolloutPool::Lost lost = pool_.set_serving(engines, version, std::move(holders));
  std::vector<uint64_t> ids = lost.prompt_ids;
  std::erase_if(ready_, [&](const GroupResult& group) {
    const bool is_lost = lost.engines.contains(group.source.engine_address);
    if (is_lost) ids.push_back(group.source.prompt_id);
    return is_lost;
  });
  if (ids.empty()) return;
  get_logger("run")->warn("{} whole groups are drawn again: their engine does not answer",
                          ids.size());
  again_.insert(again_.begin(), ids.begin(), ids.end());
}

void RolloutFeed::note_published(int64_t version, int64_t step) {
  settings_.weight_version = version;
  step_of_[version] = step;
  trained_steps_ = step;
  in_training_ = 0;
  // A sample may be of weights that are too old, but then it does not matter how old.
  std::erase_if(step_of_,
                [&](const auto& entry) { return entry.second < step - plan_.max_staleness; });
}

int64_t RolloutFeed::staleness(const GroupResult& group) const {
  int64_t oldest = settings_.weight_version;
  for (const SampleResult& sample : group.samples) {
    if (sample.oldest_version > 0) oldest = std::min(oldest, sample.oldest_version);
  }
  const auto known = step_of_.find(oldest);
  return known == step_of_.end() ? plan_.max_staleness + 1 : trained_steps_ - known->second;
}

void RolloutFeed::top_up() {
  // What a step trains on is in flight until its weights are out: what is begun meanwhile is of
  // the weights before, and must be taken a step earlier than what is begun after.
  const int64_t training = plan_.schedule == RolloutSchedule::kAsync ? in_training_ : 0;
  const int64_t wanted = plan_.groups_in_flight - num_ready() - pool_.num_open() - training;
  if (wanted <= 0) return;
  std::vector<PromptTask> prompts;
  for (int64_t i = 0; i < wanted; ++i) {
    int64_t place = next_place_;
    if (again_.empty()) {
      ++next_place_;
    } else {
      place = again_.front();
      again_.pop_front();
    }
    prompts.push_back(prompt_at_(place));
  }
  pool_.submit(prompts, settings_);
}

void RolloutFeed::accept(GroupResult group) {
  // One without any reward counts, or a step whose verifier is down would never end.
  if (staleness(group) > plan_.max_staleness) {
    ++counts_.stale_groups;
    pool_.release({group.source});
  } else if (plan_.filter == DynamicFilter::kNonzeroStd && group.num_scored() > 0 &&
             !has_spread(group)) {
    ++counts_.filtered_groups;
    pool_.release({group.source});
  } else {
    ready_.push_back(std::move(group));
  }
}

void RolloutFeed::gather(Deadline deadline) {
  while (num_ready() < plan_.prompts_per_step) {
    top_up();
    try {
      if (deadline.expired()) fail(ErrorCode::kDeadlineExceeded, "too few pass the filter");
      accept(pool_.next(false, deadline));
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kDeadlineExceeded) throw;
      fail(error.code(),
           "rollout.timeout_ms passed: {} of {} groups are whole, {} under way, {} were filtered "
           "out and {} too old: {}",
           num_ready(), plan_.prompts_per_step, pool_.num_open(), counts_.filtered_groups,
           counts_.stale_groups, error.what());
    }
  }
}

Rollout RolloutFeed::take(int64_t step, bool begins_next) {
  const Stopwatch clock;
  pool_.run(true);
  gather(Deadline::after(plan_.timeout));
  Rollout rollout = std::exchange(counts_, {});
  double staleness_sum = 0.0;
  for (GroupResult& group : ready_) {
    const int64_t age = staleness(group);
    staleness_sum += static_cast<double>(age);
    rollout.staleness_max = std::max(rollout.staleness_max, age);
    rollout.add(std::move(group));
  }
  rollout.staleness_mean = staleness_sum / static_cast<double>(ready_.size());
  in_training_ = num_ready();
  ready_.clear();
  rollout.sort();
  if (rollout.groups.empty()) {
    fail(ErrorCode::kUnavailable, "step {}: not one sample could be scored: {}", step,
         rollout.samples[0].error);
  }
  switch (plan_.schedule) {
    case RolloutSchedule::kSync:
      if (plan_.carries) {
        pool_.run(false);
      } else {
        rollout.dropped_groups += pool_.drop_open();
      }
      break;
    case RolloutSchedule::kOneStepOff:
      rollout.dropped_groups += pool_.drop_open();
      if (begins_next) top_up();
      break;
    case RolloutSchedule::kAsync:
      if (begins_next) top_up();
      break;
  }
  rollout.carried_groups = pool_.num_open();
  rollout.engines = pool_.take_figures();
  rollout.wait_ms = clock.elapsed_ms();
  return rollout;
}

void RolloutFeed::settle() {
  if (plan_.schedule == RolloutSchedule::kOneStepOff && pool_.num_open() > 0) {
    gather(Deadline::after(plan_.timeout));
    counts_.dropped_groups += pool_.drop_open();
  }
}

void RolloutFeed::abandon() {
  pool_.drop_open();
  std::vector<GroupSource> dropped;
  for (const GroupResult& group : ready_) dropped.push_back(group.source);
  pool_.release(dropped);
  ready_.clear();
}

void RolloutFeed::refill() {
  if (plan_.schedule == RolloutSchedule::kAsync) top_up();
}

}  // namespace nibble
