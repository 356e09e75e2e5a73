#include "rollout/rollout_worker.h"

#include <set>
#include <string>
#include <utility>

#include "core/base/fail.h"
#include "rollout/engine_setup.h"
#include "rollout/prompt_length.h"
#include "rollout/published_draft.h"
#include "rollout/text_stop.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

// An evaluation goes before samples of training that wait: a step waits for it.
constexpr int32_t kEvaluationPriority = 1024;

std::unique_ptr<HeadCoach> make_coach(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                      const std::shared_ptr<const DraftHead>& head) {
  if (!options.rollout.train_draft_head || head == nullptr) return nullptr;
  return std::make_unique<HeadCoach>(head, spec, HeadCoach::Options());
}

// Of a sample without an error.
SampleGroup kept_group(uint64_t prompt_id, std::vector<int32_t> prompt,
                       std::vector<SampleReport>& samples) {
  SampleGroup group{prompt_id, std::move(prompt), {}, {}, {}};
  for (SampleReport& report : samples) {
    if (report.error) continue;
    // A prompt is routed once for all its samples.
    if (group.prompt_routes.empty()) group.prompt_routes = std::move(report.prompt_routes);
    group.route_shape = report.route_shape;
    std::vector<uint8_t> routes = std::exchange(report.sample.routes, {});  // the largest part
    group.samples.push_back(report.sample);
    group.samples.back().routes = std::move(routes);
  }
  return group;
}

}  // namespace

RolloutWorker::RolloutWorker(RolloutWorkerOptions options)
    : options_(std::move(options)),
      spec_(model_spec(options_.model, options_.lora)),
      draft_spec_(draft_model_spec(options_)),
      tokenizer_(Tokenizer::from_directory(options_.model)),
      encoder_(tokenizer_, options_.model.string()),
      head_(load_job_head(options_, spec_)),
      coach_(make_coach(options_, spec_, head_)),
      engine_(make_job_engine(options_, spec_, draft_spec_ ? &*draft_spec_ : nullptr, head_,
                              coach_.get())),
      scorer_(options_.reward, options_.reward_command, tokenizer_) {}

double RolloutWorker::set_weights(std::shared_ptr<const ResidentWeights> weights, int64_t version) {
  if (engine_->has_weights() && engine_->version() == version) return 0.0;
  const Stopwatch clock;
  engine_->set_weights(weights, version, options_.rollout.kv_policy);
  if (draft_spec_) {
    engine_->set_draft_weights(std::make_shared<PublishedDraft>(weights, spec_.table.size()),
                               ++draft_version_);
  }
  weights_ = std::move(weights);
  return std::exchange(without_weights_, std::nullopt).value_or(clock).elapsed_ms();
}

void RolloutWorker::release_weights() {
  engine_->release_weights();
  if (draft_spec_) engine_->release_draft_weights();
  weights_ = nullptr;
  if (!without_weights_) without_weights_.emplace();
}

void RolloutWorker::submit(const RolloutJob& job) {
  if (!engine_->has_weights() || engine_->version() != job.weight_version) {
    fail(ErrorCode::kFailedPrecondition, "weight version {} is wanted, but {} is served",
         job.weight_version, engine_->has_weights() ? std::to_string(version()) : "none");
  }
  OpenGroups added;
  std::vector<GenerateRequest> requests;
  std::set<uint64_t> ids;
  for (const RolloutPrompt& prompt : job.prompts) {
    const uint64_t first_id = next_request_id_ + requests.size();
    DrawnGroup group{prompt.prompt_id,
                     prompt.attempt,
                     job.evaluation,
                     prompt.label,
                     encoder_.encode(prompt.content),
                     {}};
    check_prompt_length(tokenizer_, group.prompt, job.max_new_tokens, options_.rollout,
                        engine_->config().kv_slots);
    for (int64_t s = 0; s < job.samples_per_prompt; ++s) {
      GenerateRequest request;
      request.id = first_id + static_cast<uint64_t>(s);
      request.prompt_id = prompt.prompt_id;
      request.sample_index = static_cast<uint32_t>(s);
      request.prompt = group.prompt;
      request.max_new_tokens = job.max_new_tokens;
      request.sampling = job.sampling;
      request.seed = job.seed;
      request.stop_ids = tokenizer_.stop_ids();
      request.want_routes = options_.wants_routes && !job.evaluation;
      request.priority = job.evaluation ? kEvaluationPriority : 0;
      if (!options_.rollout.stop.empty()) {
        request.stop = std::make_unique<TextStop>(tokenizer_, options_.rollout.stop);
      }
      requests.push_back(std::move(request));
    }
    group.samples.resize(static_cast<size_t>(job.samples_per_prompt));
    if (!ids.insert(prompt.prompt_id).second) {
      fail(ErrorCode::kInvalidArgument, "prompt {} stands twice in a job", prompt.prompt_id);
    }
    added[first_id] = {std::move(group), job.samples_per_prompt};
  }
  const size_t count = requests.size();
  end_groups([&](const DrawnGroup& group) {
    return group.evaluation == job.evaluation && ids.contains(group.prompt_id);
  });
  if (engine_->submit(std::move(requests)) != SubmitOutcome::kAccepted) {
    fail(ErrorCode::kResourceExhausted, "the engine's queue cannot take {} requests", count);
  }
  next_request_id_ += count;
  open_.merge(added);
}

template <typename Which>
void RolloutWorker::end_groups(Which which) {
  std::erase_if(open_, [&](const OpenGroups::value_type& entry) {
    const auto& [first_id, open] = entry;
    if (!which(open.group)) return false;
    for (size_t i = 0; i < open.group.samples.size(); ++i) engine_->abort(first_id + i);
    return true;
  });
}

void RolloutWorker::release(std::span<const uint64_t> prompt_ids) {
  const std::set<uint64_t> ids(prompt_ids.begin(), prompt_ids.end());
  end_groups(
      [&](const DrawnGroup& group) { return !group.evaluation && ids.contains(group.prompt_id); });
  kept_.release(prompt_ids);
}

void RolloutWorker::take_finished(DrawnGroups& drawn) {
  for (Completion& done : engine_->take_finished()) {
    auto found = open_.upper_bound(done.id);
    if (found == open_.begin()) continue;  // of a group that was ended, as below
    auto& [first_id, open] = *--found;
    const uint64_t index = done.id - first_id;
    if (index >= open.group.samples.size()) continue;
    open.group.samples[index] = std::move(done);
    if (--open.missing > 0) continue;
    drawn.groups.push_back(std::move(open.group));
    open_.erase(found);
  }
}

DrawnGroups RolloutWorker::advance(Deadline until, TaskThread& thread) {
  const EngineTotals before = engine_->stats();
  DrawnGroups drawn;
  try {
    while (true) {
      const Stopwatch clock;
      thread.let_in();
      take_finished(drawn);
      if (!drawn.groups.empty() || until.expired()) break;
      if (!engine_->has_work()) {
        thread.wait_and_let_in(until);
        continue;
      }
      if (engine_->has_weights()) {
        engine_->step();
        if (coach_) coach_->after_step(*engine_, *weights_);
      } else {
        thread.wait_and_let_in(until);
      }
      drawn.generate_ms += clock.elapsed_ms();
    }
  } catch (const Error&) {
    end_groups([](const DrawnGroup&) { return true; });
    throw;
  }
  drawn.engine = engine_->stats().since(before);
  return drawn;
}

RolloutOutcome RolloutWorker::finish(DrawnGroups drawn) {
  RolloutOutcome outcome;
  outcome.generate_ms = drawn.generate_ms;
  outcome.engine = drawn.engine;
  if (drawn.groups.empty()) return outcome;
  std::vector<std::vector<int32_t>> prompts;
  for (const DrawnGroup& group : drawn.groups) {
    prompts.push_back(group.prompt);
    outcome.prefill_tokens += std::ssize(group.prompt);
    for (const Completion& done : group.samples)
      outcome.generated_tokens += std::ssize(done.tokens);
  }
  const Stopwatch clock;
  outcome.groups = scorer_.score(std::move(drawn.groups));
  outcome.reward_ms = clock.elapsed_ms();
  for (size_t g = 0; g < prompts.size(); ++g) {
    GroupReport& group = outcome.groups[g];
    if (group.evaluation) continue;
    kept_.keep(kept_group(group.prompt_id, std::move(prompts[g]), group.samples));
  }
  return outcome;
}

}  // namespace nibble
