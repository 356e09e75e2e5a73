#include "rollout/rollout_worker.h"

#include <algorithm>
#include <utility>

#include "core/base/fail.h"
#include "rollout/engine_setup.h"
#include "rollout/prompt_length.h"
#include "rollout/text_stop.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

constexpr size_t kMaxReportText = 4096;
constexpr size_t kKeptSteps = 2;

std::unique_ptr<HeadCoach> make_coach(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                      const std::shared_ptr<const DraftHead>& head) {
  if (!options.rollout.train_draft_head || head == nullptr) return nullptr;
  return std::make_unique<HeadCoach>(head, spec, HeadCoach::Options());
}

std::string capped(std::string text) {
  if (text.size() <= kMaxReportText) return text;
  size_t end = kMaxReportText;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  text.resize(end);
  return text;
}

// What the engine recorded for one sample: the prompt's tokens first.
void take_routes(const Routes& routes, size_t prompt_tokens, SampleReport& report) {
  report.route_shape = {routes.layers, routes.top_k, routes.bytes_per_expert};
  const auto split = routes.bytes.begin() + static_cast<std::ptrdiff_t>(prompt_tokens) *
                                                report.route_shape.bytes_per_token();
  report.prompt_routes.assign(routes.bytes.begin(), split);
  report.sample.routes.assign(split, routes.bytes.end());
}

}  // namespace

// One job's requests: sample i of the outcome is request first_id + i.
struct RolloutWorker::Running {
  uint64_t first_id = 0;
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Completion> completions;  // by request
};

RolloutWorker::RolloutWorker(RolloutWorkerOptions options)
    : options_(std::move(options)),
      spec_(model_spec(options_.model)),
      tokenizer_(Tokenizer::from_directory(options_.model)),
      encoder_(tokenizer_, options_.model.string()),
      head_(load_job_head(options_, spec_)),
      coach_(make_coach(options_, spec_, head_)),
      engine_(make_job_engine(options_, spec_, head_, coach_.get())) {
  RewardProcessOptions reward;
  reward.command = options_.reward_command;
  reward.sample_timeout = std::chrono::milliseconds(options_.reward.timeout_ms);
  reward.limits.max_memory_bytes = options_.reward.memory_mb << 20;
  rewards_ = std::make_unique<RewardProcess>(std::move(reward));
}

double RolloutWorker::set_weights(std::shared_ptr<const ResidentWeights> weights, int64_t version) {
  if (engine_->has_weights() && engine_->version() == version) return 0.0;
  const Stopwatch clock;
  engine_->set_weights(weights, version, options_.rollout.kv_policy);
  weights_ = std::move(weights);
  return std::exchange(without_weights_, std::nullopt).value_or(clock).elapsed_ms();
}

void RolloutWorker::release_weights() {
  engine_->release_weights();
  weights_ = nullptr;
  if (!without_weights_) without_weights_.emplace();
}

std::vector<Completion> RolloutWorker::run_engine(const RolloutJob& job, Running& running,
                                                  Deadline deadline, TaskThread& thread) {
  std::vector<GenerateRequest> requests;
  running.first_id = next_request_id_;
  for (size_t p = 0; p < job.prompts.size(); ++p) {
    for (int64_t s = 0; s < job.samples_per_prompt; ++s) {
      GenerateRequest request;
      request.id = next_request_id_++;
      request.prompt_id = job.prompts[p].prompt_id;
      request.sample_index = static_cast<uint32_t>(s);
      request.prompt = running.prompts[p];
      request.max_new_tokens = job.max_new_tokens;
      request.sampling = job.sampling;
      request.seed = job.seed;
      request.stop_ids = tokenizer_.stop_ids();
      request.want_routes = options_.wants_routes && !job.evaluation;
      if (!options_.rollout.stop.empty()) {
        request.stop = std::make_unique<TextStop>(tokenizer_, options_.rollout.stop);
      }
      requests.push_back(std::move(request));
    }
  }
  const size_t count = requests.size();
  if (engine_->submit(std::move(requests)) != SubmitOutcome::kAccepted) {
    fail(ErrorCode::kResourceExhausted, "the engine's queue cannot take {} requests", count);
  }
  std::vector<Completion> completions(count);
  try {
    while (engine_->has_work()) {
      if (deadline.expired()) {
        fail(ErrorCode::kDeadlineExceeded, "step {}: {} samples were not generated in time",
             job.step, count);
      }
      thread.let_in();
      if (!engine_->has_weights()) {
        thread.wait_and_let_in(deadline);
        continue;
      }
      engine_->step();
      if (coach_) coach_->after_step(*engine_, *weights_);
      for (Completion& done : engine_->take_finished()) {
        completions[done.id - running.first_id] = std::move(done);
      }
    }
  } catch (const Error&) {
    for (size_t i = 0; i < count; ++i) engine_->abort(running.first_id + i);
    engine_->take_finished();
    throw;
  }
  return completions;
}

RolloutOutcome RolloutWorker::generate(const RolloutJob& job, Deadline deadline,
                                       TaskThread& thread) {
  if (!engine_->has_weights()) {
    fail(ErrorCode::kFailedPrecondition, "step {} wants weight version {}, but none is served",
         job.step, job.weight_version);
  }
  if (engine_->version() != job.weight_version) {
    fail(ErrorCode::kFailedPrecondition, "step {} wants weight version {}, but {} is served",
         job.step, job.weight_version, engine_->version());
  }
  RolloutOutcome outcome;
  Stopwatch clock;
  Running running;
  for (const RolloutPrompt& prompt : job.prompts) {
    running.prompts.push_back(encoder_.encode(prompt.content));
    check_prompt_length(tokenizer_, running.prompts.back(), job.max_new_tokens, options_.rollout,
                        engine_->config().kv_slots);
    outcome.prefill_tokens += static_cast<int64_t>(running.prompts.back().size());
  }
  const EngineTotals before = engine_->stats();
  running.completions = run_engine(job, running, deadline, thread);
  outcome.engine = engine_->stats().since(before);
  outcome.generate_ms = clock.restart_ms();
  score(job, running, outcome);
  outcome.reward_ms = clock.elapsed_ms();
  if (!job.evaluation) keep(job, running, outcome);
  return outcome;
}

void RolloutWorker::score(const RolloutJob& job, Running& running, RolloutOutcome& outcome) {
  std::vector<RewardSample> batch;
  const auto per_prompt = static_cast<size_t>(job.samples_per_prompt);
  for (size_t i = 0; i < running.completions.size(); ++i) {
    Completion& done = running.completions[i];
    SampleReport report;
    report.prompt_id = job.prompts[i / per_prompt].prompt_id;
    report.sample.sample_index = static_cast<uint32_t>(i % per_prompt);
    report.sample.finish_reason = finish_reason_name(done.reason);
    const std::string text = tokenizer_.decode(done.tokens, {.skip_special = true});
    batch.push_back({text, job.prompts[i / per_prompt].label});
    report.response_text = capped(text);
    if (i % per_prompt == 0) {
      report.prompt_text = capped(tokenizer_.decode(running.prompts[i / per_prompt]));
    }
    if (done.reason == FinishReason::kAborted) report.error = "a swap of weights ended it";
    outcome.generated_tokens += static_cast<int64_t>(done.tokens.size());
    report.sample.response = std::move(done.tokens);
    report.sample.log_probs = std::move(done.log_probs);
    report.sample.versions = std::move(done.versions);
    if (!done.routes.bytes.empty())
      take_routes(done.routes, running.prompts[i / per_prompt].size(), report);
    outcome.samples.push_back(std::move(report));
  }
  const auto rewards = rewards_->score(batch);
  for (size_t i = 0; i < rewards.size(); ++i) {
    if (const auto* error = std::get_if<Error>(&rewards[i])) {
      outcome.samples[i].error = error->what();
    } else if (!outcome.samples[i].error) {
      outcome.samples[i].sample.reward = std::get<double>(rewards[i]);
    }
  }
}

void RolloutWorker::keep(const RolloutJob& job, Running& running, RolloutOutcome& outcome) {
  std::map<uint64_t, SampleGroup> groups;
  for (size_t p = 0; p < job.prompts.size(); ++p) {
    groups[job.prompts[p].prompt_id] = {job.prompts[p].prompt_id, running.prompts[p], {}, {}, {}};
  }
  for (SampleReport& report : outcome.samples) {
    if (report.error) continue;
    SampleGroup& group = groups[report.prompt_id];
    // A prompt is routed once for all its samples.
    if (group.prompt_routes.empty()) group.prompt_routes = std::move(report.prompt_routes);
    group.route_shape = report.route_shape;
    std::vector<uint8_t> routes = std::exchange(report.sample.routes, {});  // the largest part
    group.samples.push_back(report.sample);
    group.samples.back().routes = std::move(routes);
  }
  for (const auto& [id, group] : groups) {
    auto tokens = static_cast<int64_t>(group.prompt.size());
    for (const Sample& sample : group.samples) {
      tokens += std::max<int64_t>(0, static_cast<int64_t>(sample.response.size()) - 1);
    }
    outcome.computed_tokens[id] = tokens;
  }
  const std::lock_guard lock(mutex_);
  for (auto& [id, group] : groups) {
    kept_[job.step][id] = std::make_shared<const SampleGroup>(std::move(group));
  }
  while (kept_.size() > kKeptSteps) kept_.erase(kept_.begin());
}

std::vector<KeptGroup> RolloutWorker::fetch(int64_t step,
                                            const std::vector<uint64_t>& prompt_ids) const {
  const std::lock_guard lock(mutex_);
  const auto found = kept_.find(step);
  if (found == kept_.end()) {
    fail(ErrorCode::kNotFound, "no samples of step {} are kept here", step);
  }
  std::vector<KeptGroup> groups;
  for (const uint64_t id : prompt_ids) {
    const auto group = found->second.find(id);
    if (group == found->second.end()) {
      fail(ErrorCode::kNotFound, "no samples of prompt {} in step {} are kept here", id, step);
    }
    groups.push_back(group->second);
  }
  return groups;
}

}  // namespace nibble
