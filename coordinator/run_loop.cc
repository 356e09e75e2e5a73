#include "coordinator/run_loop.h"

#include <cmath>
#include <functional>

#include "coordinator/run_files.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/base/parallel_calls.h"

namespace nibble {

using std::chrono::milliseconds;

namespace {

PromptTask task_of(uint64_t id, const PromptRecord& prompt) {
  return {id, prompt.content.dump(), prompt.label.dump()};
}

}  // namespace

RunLoop::RunLoop(CoordinatorConfig config, SamplingPlan sampling, Membership& membership,
                 EngineBoard& board, std::vector<std::filesystem::path> checkpoints)
    : config_(std::move(config)),
      sampling_(sampling),
      membership_(membership),
      board_(board),
      resume_from_(std::move(checkpoints)),
      is_new_(resume_from_.empty() || begins_elsewhere(config_.run.directory, resume_from_)),
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
  std::vector<std::function<void()>> calls;
  calls.emplace_back([&] { trainers_->start(); });
  for (size_t e = 0; e < engines_.size(); ++e) {
    // Where its ranks meet: at the first.
    const size_t first = e - e % static_cast<size_t>(sampling_.engine_ranks);
    const Member& host = engines_[first]->member();
    const MeetingPoint at{host.host, host.rendezvous_port, fmt::format("engine-{}", first),
                          timeout};
    calls.emplace_back([&engine = *engines_[e], at, timeout] { engine.start(at, timeout); });
  }
  run_parallel(calls);
  checkpoints_ = std::make_unique<CheckpointWriter>(config_.run.directory, config_.checkpoint.keep,
                                                    *trainers_);
  const CheckpointStart start = trainers_->load_first_whole(resume_from_);
  begin_at(start.step, is_new_);
  note_fallback(resume_from_, start.step, store_);
  std::vector<RolloutClient*> engines;
  for (auto& engine : engines_) engines.push_back(engine.get());
  publisher_ = std::make_unique<WeightPublisher>(config_.run.directory.filename().string(),
                                                 membership_.epoch(), trainers_->clients(), engines,
                                                 store_, publisher_options());
  pool_ = std::make_unique<RolloutPool>(engines, sampling_.timeout);
  DrawSettings draws;
  draws.samples_per_prompt = sampling_.samples_per_prompt;
  draws.seed = static_cast<uint64_t>(config_.run.seed);
  draws.temperature = sampling_.temperature;
  draws.top_p = sampling_.top_p;
  draws.top_k = sampling_.top_k;
  draws.max_new_tokens = sampling_.max_new_tokens;
  feed_ = std::make_unique<RolloutFeed>(
      sampling_, draws, [this](int64_t place) { return training_prompt(place); }, *pool_);
  try {
    feed_->restore(start.rollout_state, start.step);
  } catch (const Error& error) {
    fail(error.code(), "checkpoint of step {} in '{}': {}; remove it to go on from the one before",
         start.step, config_.run.directory.string(), error.what());
  }
}

void RunLoop::begin_at(int64_t step, bool is_fresh) {
  summary_.steps = step;
  store_.rewind_to(step);
  metrics_ = std::make_unique<MetricsLog>(config_.run.directory / "metrics.jsonl", store_,
                                          is_fresh ? -1 : step);
}

PromptTask RunLoop::training_prompt(int64_t place) {
  // The place in the stream names the prompt in random draws: unique over the whole run.
  return task_of(static_cast<uint64_t>(place),
                 train_prompts_[static_cast<size_t>(stream_.index_at(place))]);
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
  publish(summary_.steps);
  feed_->set_serving(publisher_->serving(), published_.version);
  const auto& source = is_new_ && !resume_from_.empty()
                           ? resume_from_[0].parent_path().parent_path()
                           : config_.run.directory;
  feed_->restore_groups(saved_groups_path(source, summary_.steps));
  summary_.interrupted = interrupt;  // while the job started: nothing to finish, nothing to save
  if (is_new_ && !summary_.interrupted) {
    evaluate(summary_.steps);
    summary_.first_eval = summary_.last_eval;
  }
  while (summary_.steps < config_.run.steps && !summary_.interrupted) {
    membership_.check_leases();
    checkpoints_->check();
    const int64_t step = summary_.steps + 1;
    if (!run_step(step)) continue;
    summary_.steps = step;
    const bool last = step == config_.run.steps;
    if (step % config_.eval.every == 0 || last) evaluate(step);
    summary_.interrupted = interrupt && !last;
    if (step % config_.checkpoint.every == 0 || last || summary_.interrupted) save(step);
  }
  checkpoints_->finish();
  publisher_.reset();  // an engine that still catches up must not keep the workers
  membership_.stop();
  return summary_;
}

void RunLoop::save(int64_t step) {
  checkpoints_->save(step, published_.version,
                     [&] { return feed_->save(saved_groups_path(config_.run.directory, step)); });
}

void RunLoop::publish(int64_t step) {
  published_ = publisher_->publish(step, config_.weight_sync.retries);
  feed_->note_published(published_.version, step);
}

bool RunLoop::run_step(int64_t step) {
  const Stopwatch whole;
  store_.begin_step(step, unix_ms());
  // Fenced engines draw nothing. Which engine makes a sample does not change it.
  feed_->set_serving(publisher_->serving(), published_.version);
  const Rollout rollout = feed_->take(step, step < config_.run.steps);
  MetricsRow row(step);
  rollout.add_figures(row);
  row.set("weight_version", static_cast<double>(published_.version));
  const std::optional<GuardReport> guard = train_on(rollout, step, row);
  if (guard && guard->action == "roll_back") {
    roll_back(step, *guard);
    return false;
  }
  feed_->settle();
  publish(step);
  feed_->set_serving(publisher_->serving(), published_.version);
  if (step < config_.run.steps) feed_->refill();
  row.set("published_version", static_cast<double>(published_.version));
  row.set("sync_bytes", static_cast<double>(published_.bytes));
  row.set("sync_ms", published_.sync_ms);
  row.set("sync_wire_ms", published_.wire_ms);
  row.set("pause_ms", published_.pause_ms);
  row.set("serving_engines", static_cast<double>(published_.engines));
  const double step_ms = whole.elapsed_ms();
  row.set("step_ms", step_ms);
  row.set("tokens_per_s", static_cast<double>(rollout.generated_tokens()) / step_ms * 1000.0);
  row.set("samples_per_s", static_cast<double>(rollout.samples.size()) / step_ms * 1000.0);
  metrics_->write(row);
  record_samples(step, rollout);
  store_.end_step(step, StepStatus::kDone, unix_ms());
  report(row, step_ms);
  return true;
}

std::optional<GuardReport> RunLoop::train_on(const Rollout& rollout, int64_t step,
                                             MetricsRow& row) {
  const Stopwatch clock;
  const TrainResult result = trainers_->train(step, rollout.groups, sampling_.timeout);
  row.set("train_ms", clock.elapsed_ms());
  for (const auto& [name, value] : result.figures) row.set(name, value);
  pool_->release(rollout.groups);
  pool_->release(rollout.unscored);
  if (!result.guard) return std::nullopt;
  const GuardReport& guard = *result.guard;
  const std::string text = fmt::format("step {}: {}: {}", step, guard.action, guard.text());
  get_logger("run")->warn("guard {}", text);
  store_.record_event({unix_ms(), Severity::kWarning, "coordinator", "guard", text});
  if (guard.action == "stop") {
    fail(ErrorCode::kFailedPrecondition,
         "guard {}; the update was not made; `--resume` goes on from the last checkpoint, with the "
         "same prompts unless a key changes",
         text);
  }
  return guard;
}

void RunLoop::roll_back(int64_t step, const GuardReport& guard) {
  checkpoints_->finish();
  auto checkpoints = finished_checkpoints(config_.run.directory);
  if (checkpoints.empty()) checkpoints = resume_from_;  // another run's
  if (checkpoints.empty() || ++rollbacks_ > config_.max_rollbacks) {
    fail(ErrorCode::kFailedPrecondition, "guard step {}: {}; {}", step, guard.text(),
         checkpoints.empty()
             ? std::string("there is no checkpoint to roll back to")
             : fmt::format("the run was rolled back guards.max_rollbacks = {} times already",
                           config_.max_rollbacks));
  }
  feed_->abandon();
  const int64_t reached = trainers_->load_first_whole(checkpoints).step;
  begin_at(reached, false);
  get_logger("run")->warn("rolled back to step {}; the run goes on with further prompts", reached);
  publish(reached);
  save(reached);  // a run that is resumed there must not meet the same prompts again
}

Rollout RunLoop::sample_held_out(int64_t step, size_t set) {
  const std::vector<PromptRecord>& prompts = held_out_prompts_[set];
  // Draws of an evaluation never coincide with those of training, of another set or of another
  // evaluation.
  std::vector<PromptTask> tasks;
  for (size_t i = 0; i < prompts.size(); ++i) {
    tasks.push_back(task_of((uint64_t{set} << 32) + i, prompts[i]));
  }
  DrawSettings draws;
  draws.weight_version = published_.version;
  draws.samples_per_prompt = held_out_[set].samples;
  draws.evaluation = true;
  draws.seed =
      static_cast<uint64_t>(config_.run.seed) + (uint64_t{1} << 40) + static_cast<uint64_t>(step);
  draws.temperature = held_out_[set].temperature;
  draws.top_p = held_out_[set].top_p;
  draws.top_k = held_out_[set].top_k;
  draws.max_new_tokens = held_out_[set].max_new_tokens;
  feed_->set_serving(publisher_->serving(), published_.version);
  pool_->run(true);
  pool_->submit(tasks, draws);
  const Deadline deadline = Deadline::after(sampling_.timeout);
  Rollout rollout;
  for (size_t i = 0; i < tasks.size(); ++i) rollout.add(pool_->next(true, deadline));
  rollout.sort();
  rollout.engines = pool_->take_figures();
  return rollout;
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
  summary_.last_eval = reward;
  get_logger("run")->info("eval step={} reward={:.3f} samples={} version={}", step, reward, samples,
                          published_.version);
}

void RunLoop::record_samples(int64_t step, const Rollout& rollout) {
  std::vector<SampleRecord> records;
  for (const SampleResult& sample : rollout.samples) {
    records.push_back({step, std::to_string(sample.prompt_id), sample.sample_index,
                       sample.error.empty() ? sample.reward : std::nan(""), sample.response_tokens,
                       sample.error.empty() ? sample.finish_reason : "reward_error",
                       sample.oldest_version, sample.prompt_text, sample.response_text});
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
