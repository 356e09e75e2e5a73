#include "coordinator/run_loop.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <mutex>

#include "coordinator/run_files.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/base/parallel_calls.h"

namespace nibble {
namespace {

using std::chrono::milliseconds;

std::vector<PromptTask> tasks_of(const std::vector<PromptRecord>& prompts,
                                 const std::vector<std::pair<uint64_t, int64_t>>& picks) {
  std::vector<PromptTask> tasks;
  for (const auto& [id, index] : picks) {
    const PromptRecord& prompt = prompts[static_cast<size_t>(index)];
    tasks.push_back({id, prompt.content.dump(), prompt.label.dump()});
  }
  return tasks;
}

}  // namespace

// What all engines made of one request.
struct RunLoop::Rollout {
  std::vector<SampleResult> samples;  // by prompt id, then sample
  std::vector<GroupSource> groups;    // by prompt id
  double generate_ms = 0.0;           // slowest engine
  double reward_ms = 0.0;
  int64_t generated_tokens = 0;
  int64_t guessed_tokens = 0;
  int64_t accepted_tokens = 0;
  int64_t cached_prompt_tokens = 0;
  int64_t preemptions = 0;
  double draft_ms = 0.0;  // slowest engine

  double reward_mean() const {
    double sum = 0.0;
    int64_t count = 0;
    for (const SampleResult& sample : samples) {
      if (!sample.error.empty()) continue;
      sum += sample.reward;
      ++count;
    }
    return count > 0 ? sum / static_cast<double>(count) : 0.0;
  }
};

RunLoop::RunLoop(CoordinatorConfig config, SamplingPlan sampling, Membership& membership,
                 EngineBoard& board, std::filesystem::path checkpoint)
    : config_(std::move(config)),
      sampling_(sampling),
      membership_(membership),
      board_(board),
      resume_from_(std::move(checkpoint)),
      train_prompts_(
          read_prompts(config_.data.train, config_.data.keys.prompt, config_.data.label_key)),
      held_out_(held_out_sets(config_.eval, sampling_.max_new_tokens)),
      stream_(static_cast<int64_t>(train_prompts_.size()), static_cast<uint64_t>(config_.run.seed),
              config_.data.shuffle),
      store_(prepare_run_directory(config_.run.directory) / "run.db") {
  for (const HeldOutSet& set : held_out_) {
    held_out_prompts_.push_back(
        read_prompts(set.data, config_.data.keys.prompt, config_.data.label_key));
  }
}

RunLoop::~RunLoop() = default;

void RunLoop::connect() {
  membership_.wait_complete(Deadline::after(milliseconds(config_.cluster.start_timeout_ms)));
  trainers_.emplace(membership_.trainers(), milliseconds(config_.cluster.start_timeout_ms));
  for (const Member& member : membership_.engines()) {
    engines_.push_back(std::make_unique<RolloutClient>(member));
  }
}

void RunLoop::start_workers() {
  connect();
  const milliseconds timeout(config_.cluster.start_timeout_ms);
  TrainerStart start;
  std::vector<std::function<void()>> calls;
  calls.emplace_back([&] { start = trainers_->start(resume_from_.string()); });
  for (size_t e = 0; e < engines_.size(); ++e) {
    // Where its ranks meet: at the first.
    const size_t first = e - e % static_cast<size_t>(sampling_.engine_ranks);
    const Member& host = engines_[first]->member();
    const MeetingPoint at{host.host, host.rendezvous_port, fmt::format("engine-{}", first),
                          timeout};
    calls.emplace_back([&engine = *engines_[e], at, timeout] { engine.start(at, timeout); });
  }
  run_parallel(calls);
  summary_.steps = start.step;
  store_.rewind_to(summary_.steps);
  metrics_ = std::make_unique<MetricsLog>(config_.run.directory / "metrics.jsonl", store_,
                                          resume_from_.empty() ? -1 : summary_.steps);
  std::vector<RolloutClient*> engines;
  for (auto& engine : engines_) engines.push_back(engine.get());
  publisher_ = std::make_unique<WeightPublisher>(config_.run.directory.filename().string(),
                                                 membership_.epoch(), trainers_->clients(), engines,
                                                 store_, publisher_options());
}

PublisherOptions RunLoop::publisher_options() {
  constexpr int64_t kMega = 1'000'000;
  const WeightSyncSection& c = config_.weight_sync;
  PublisherOptions options;
  options.timeout = milliseconds(c.timeout_ms);
  options.min_bytes_per_s = c.min_mb_per_s * kMega;
  options.can_pull = config_.cluster.placement == Placement::kSeparate;
  options.whole_every = c.delta ? c.whole_every : 0;
  options.in_place = c.in_place;
  options.ranks = sampling_.engine_ranks;
  options.board = &board_;
  return options;
}

RunSummary RunLoop::run(const std::atomic<bool>& interrupt) {
  start_workers();
  published_ = publisher_->publish(summary_.steps, config_.weight_sync.retries);
  summary_.interrupted = interrupt;  // while the job started: nothing to finish, nothing to save
  if (summary_.steps == 0 && !summary_.interrupted) evaluate(0);
  while (summary_.steps < config_.run.steps && !summary_.interrupted) {
    membership_.check_leases();
    const int64_t step = summary_.steps + 1;
    run_step(step);
    summary_.steps = step;
    const bool last = step == config_.run.steps;
    if (step % config_.eval.every == 0 || last) evaluate(step);
    summary_.interrupted = interrupt && !last;
    if (step % config_.checkpoint.every == 0 || last || summary_.interrupted) {
      write_checkpoint(config_.run.directory, config_.checkpoint, *trainers_, step,
                       published_.version);
    }
  }
  publisher_.reset();  // an engine that still catches up must not keep the workers
  membership_.stop();
  return summary_;
}

RunLoop::Rollout RunLoop::generate_on_all(const GenerateTask& base,
                                          const std::vector<PromptTask>& prompts) {
  // Fenced engines generate nothing. Which engine makes a sample does not change it.
  const std::vector<int> serving = publisher_->serving();
  if (serving.empty()) {
    fail(ErrorCode::kUnavailable, "step {}: no engine serves version {}", base.step,
         base.weight_version);
  }
  std::vector<GenerateTask> tasks(serving.size(), base);
  for (size_t i = 0; i < prompts.size(); ++i) {
    tasks[i % tasks.size()].prompts.push_back(prompts[i]);
  }
  std::mutex mutex;
  Rollout rollout;
  std::vector<std::function<void()>> calls;
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (tasks[t].prompts.empty()) continue;
    calls.emplace_back([&, t] {
      RolloutClient& engine = *engines_[static_cast<size_t>(serving[t])];
      GenerateResult result = engine.generate(tasks[t], sampling_.timeout);
      const std::lock_guard lock(mutex);
      rollout.samples.insert(rollout.samples.end(), result.samples.begin(), result.samples.end());
      rollout.groups.insert(rollout.groups.end(), result.groups.begin(), result.groups.end());
      rollout.generate_ms = std::max(rollout.generate_ms, result.generate_ms);
      rollout.reward_ms = std::max(rollout.reward_ms, result.reward_ms);
      rollout.generated_tokens += result.generated_tokens;
      rollout.guessed_tokens += result.guessed_tokens;
      rollout.accepted_tokens += result.accepted_tokens;
      rollout.cached_prompt_tokens += result.cached_prompt_tokens;
      rollout.preemptions += result.preemptions;
      rollout.draft_ms = std::max(rollout.draft_ms, result.draft_ms);
    });
  }
  run_parallel(calls);
  // One order whatever the engines' speed: training must not depend on it.
  std::sort(rollout.samples.begin(), rollout.samples.end(), [](const auto& a, const auto& b) {
    return std::pair(a.prompt_id, a.sample_index) < std::pair(b.prompt_id, b.sample_index);
  });
  std::sort(rollout.groups.begin(), rollout.groups.end(),
            [](const auto& a, const auto& b) { return a.prompt_id < b.prompt_id; });
  return rollout;
}

RunLoop::Rollout RunLoop::generate(int64_t step) {
  std::vector<std::pair<uint64_t, int64_t>> picks;
  for (int64_t i = 0; i < sampling_.prompts_per_step; ++i) {
    // The position in the stream names the prompt in random draws: unique over the whole run.
    const int64_t position = (step - 1) * sampling_.prompts_per_step + i;
    picks.emplace_back(static_cast<uint64_t>(position), stream_.index_at(position));
  }
  GenerateTask task;
  task.step = step;
  task.weight_version = published_.version;
  task.samples_per_prompt = sampling_.samples_per_prompt;
  task.seed = static_cast<uint64_t>(config_.run.seed);
  task.temperature = sampling_.temperature;
  task.top_p = sampling_.top_p;
  task.top_k = sampling_.top_k;
  task.max_new_tokens = sampling_.max_new_tokens;
  return generate_on_all(task, tasks_of(train_prompts_, picks));
}

void RunLoop::run_step(int64_t step) {
  const Stopwatch whole;
  store_.begin_step(step, unix_ms());
  const Rollout rollout = generate(step);
  if (rollout.groups.empty()) {
    fail(ErrorCode::kUnavailable, "step {}: not one sample could be scored: {}", step,
         rollout.samples.empty() ? "nothing was generated" : rollout.samples[0].error);
  }
  MetricsRow row(step);
  add_rollout_figures(rollout, row);
  const Stopwatch train_clock;
  const auto figures = trainers_->figures([&](TrainerClient& trainer) {
    return trainer.train(step, rollout.groups, sampling_.timeout);
  });
  row.set("train_ms", train_clock.elapsed_ms());
  for (const auto& [name, value] : figures) row.set(name, value);
  const int64_t sampled_with = published_.version;
  published_ = publisher_->publish(step, config_.weight_sync.retries);
  row.set("weight_version", static_cast<double>(sampled_with));
  row.set("published_version", static_cast<double>(published_.version));
  row.set("sync_bytes", static_cast<double>(published_.bytes));
  row.set("sync_ms", published_.sync_ms);
  row.set("sync_wire_ms", published_.wire_ms);
  row.set("pause_ms", published_.pause_ms);
  row.set("serving_engines", static_cast<double>(published_.engines));
  const double step_ms = whole.elapsed_ms();
  row.set("step_ms", step_ms);
  row.set("tokens_per_s", static_cast<double>(rollout.generated_tokens) / step_ms * 1000.0);
  metrics_->write(row);
  record_samples(step, rollout, sampled_with);
  store_.end_step(step, StepStatus::kDone, unix_ms());
  report(row, step_ms);
}

void RunLoop::add_rollout_figures(const Rollout& rollout, MetricsRow& row) const {
  double sum = 0.0, squares = 0.0, length = 0.0, truncated = 0.0, failed = 0.0;
  double lowest = INFINITY, highest = -INFINITY;
  for (const SampleResult& sample : rollout.samples) {
    length += static_cast<double>(sample.response_tokens);
    truncated += sample.finish_reason == "length" ? 1.0 : 0.0;
    if (!sample.error.empty()) {
      failed += 1.0;
      continue;
    }
    sum += sample.reward;
    squares += sample.reward * sample.reward;
    lowest = std::min(lowest, sample.reward);
    highest = std::max(highest, sample.reward);
  }
  const auto all = static_cast<double>(rollout.samples.size());
  const double scored = std::max(1.0, all - failed);
  const double mean = sum / scored;
  row.set("reward_mean", mean);
  row.set("reward_std", std::sqrt(std::max(0.0, squares / scored - mean * mean)));
  row.set("reward_min", lowest);
  row.set("reward_max", highest);
  row.set("response_tokens_mean", length / all);
  row.set("truncated_share", truncated / all);
  row.set("samples_dropped", failed);
  int64_t zero_std = 0;
  for (size_t i = 0; i < rollout.samples.size();) {
    size_t end = i;
    bool differs = false;
    while (end < rollout.samples.size() &&
           rollout.samples[end].prompt_id == rollout.samples[i].prompt_id) {
      differs = differs || rollout.samples[end].reward != rollout.samples[i].reward;
      ++end;
    }
    zero_std += differs ? 0 : 1;
    i = end;
  }
  row.set("zero_std_groups", static_cast<double>(zero_std));
  row.set("generated_tokens", static_cast<double>(rollout.generated_tokens));
  row.set("guessed_tokens", static_cast<double>(rollout.guessed_tokens));
  row.set("accepted_tokens", static_cast<double>(rollout.accepted_tokens));
  row.set("cached_prompt_tokens", static_cast<double>(rollout.cached_prompt_tokens));
  row.set("preemptions", static_cast<double>(rollout.preemptions));
  row.set("draft_ms", rollout.draft_ms);
  row.set("generate_ms", rollout.generate_ms);
  row.set("reward_ms", rollout.reward_ms);
}

RunLoop::Rollout RunLoop::sample_held_out(int64_t step, size_t set) {
  const std::vector<PromptRecord>& prompts = held_out_prompts_[set];
  // Draws of an evaluation never coincide with those of training, of another set or of another
  // evaluation.
  std::vector<std::pair<uint64_t, int64_t>> picks;
  for (size_t i = 0; i < prompts.size(); ++i) picks.emplace_back((uint64_t{set} << 32) + i, i);
  GenerateTask task;
  task.step = step;
  task.weight_version = published_.version;
  task.samples_per_prompt = held_out_[set].samples;
  task.evaluation = true;
  task.seed =
      static_cast<uint64_t>(config_.run.seed) + (uint64_t{1} << 40) + static_cast<uint64_t>(step);
  task.temperature = held_out_[set].temperature;
  task.top_p = held_out_[set].top_p;
  task.top_k = held_out_[set].top_k;
  task.max_new_tokens = held_out_[set].max_new_tokens;
  return generate_on_all(task, tasks_of(prompts, picks));
}

void RunLoop::evaluate(int64_t step) {
  if (held_out_.empty()) return;
  const Stopwatch clock;
  MetricsRow of_sets(step);
  double sum = 0.0;
  int64_t samples = 0;
  for (size_t s = 0; s < held_out_.size(); ++s) {
    const HeldOutSet& set = held_out_[s];
    const Stopwatch set_clock;
    const Rollout rollout = sample_held_out(step, s);
    const double reward = rollout.reward_mean();
    sum += reward;
    samples += std::ssize(rollout.samples);
    if (set.name.empty()) continue;
    of_sets.set(set.metric("reward_mean"), reward);
    of_sets.set(set.metric("samples"), static_cast<double>(rollout.samples.size()));
    of_sets.set(set.metric("ms"), set_clock.elapsed_ms());
    get_logger("run")->info("eval step={} set={} reward={:.3f} samples={}", step, set.name, reward,
                            rollout.samples.size());
  }
  const double reward = sum / static_cast<double>(held_out_.size());
  MetricsRow row(step);
  row.set("eval_reward_mean", reward);
  row.set("eval_samples", static_cast<double>(samples));
  row.set("eval_weight_version", static_cast<double>(published_.version));
  row.set("eval_ms", clock.elapsed_ms());
  for (const auto& [name, value] : of_sets.values()) row.set(name, value);
  metrics_->write(row);
  if (step == 0) summary_.first_eval = reward;
  summary_.last_eval = reward;
  get_logger("run")->info("eval step={} reward={:.3f} samples={} version={}", step, reward, samples,
                          published_.version);
}

void RunLoop::record_samples(int64_t step, const Rollout& rollout, int64_t version) {
  std::vector<SampleRecord> records;
  for (const SampleResult& sample : rollout.samples) {
    records.push_back({step, std::to_string(sample.prompt_id), sample.sample_index,
                       sample.error.empty() ? sample.reward : std::nan(""), sample.response_tokens,
                       sample.error.empty() ? sample.finish_reason : "reward_error", version,
                       sample.prompt_text, sample.response_text});
  }
  store_.record_samples(records);
  store_.drop_sample_texts(step - config_.logging.sample_text_steps);
}

void RunLoop::report(const MetricsRow& row, double step_ms) {
  pace_.add(step_ms);
  get_logger("run")->info(
      "step={}/{} reward={:.3f} kl={:.5f} gap_max={:.2e} grad={:.3f} tokens_per_s={:.0f} "
      "s={:.1f} eta={}",
      row.step(), config_.run.steps, row.get("reward_mean"), row.get("kl_reference"),
      row.get("logprob_abs_diff_max"), row.get("grad_norm"), row.get("tokens_per_s"),
      step_ms / 1000.0, pace_.time_left(config_.run.steps - row.step()));
}

}  // namespace nibble
