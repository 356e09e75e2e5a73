#include "rollout/rollout_codec.h"

#include "core/base/fail.h"
#include "core/base/json.h"
#include "proto/nibble.pb.h"

namespace nibble {

RolloutJob decode_job(const v1::SubmitRequest& request) {
  RolloutJob job;
  job.weight_version = request.weight_version();
  for (const v1::Prompt& prompt : request.prompts()) {
    job.prompts.push_back({prompt.prompt_id(), parse_json(prompt.content_json(), "prompt"),
                           parse_json(prompt.label_json(), "label"), prompt.attempt()});
  }
  job.samples_per_prompt = request.samples_per_prompt();
  if (job.samples_per_prompt < 1) {
    fail(ErrorCode::kInvalidArgument, "samples_per_prompt is {}; it must be 1 or more",
         job.samples_per_prompt);
  }
  job.evaluation = request.evaluation();
  job.seed = request.seed();
  job.sampling = {static_cast<float>(request.temperature()), request.top_k(),
                  static_cast<float>(request.top_p())};
  job.max_new_tokens = request.max_new_tokens();
  return job;
}

namespace {

void encode_sample(const SampleReport& report, v1::SampleSummary& sample) {
  const std::vector<int64_t>& versions = report.sample.versions;
  sample.set_prompt_id(report.prompt_id);
  sample.set_sample_index(report.sample.sample_index);
  sample.set_reward(report.sample.reward);
  sample.set_response_tokens(std::ssize(report.sample.response));
  sample.set_finish_reason(report.sample.finish_reason);
  sample.set_prompt_text(report.prompt_text);
  sample.set_response_text(report.response_text);
  sample.set_error(report.error.value_or(""));
  // Weights only ever get newer.
  sample.set_oldest_version(versions.empty() ? 0 : versions.front());
}

}  // namespace

void encode_outcome(const RolloutOutcome& outcome, v1::CollectResponse& response) {
  for (const GroupReport& report : outcome.groups) {
    v1::GroupSummary& group = *response.add_groups();
    group.set_prompt_id(report.prompt_id);
    group.set_evaluation(report.evaluation);
    group.set_attempt(report.attempt);
    group.set_computed_tokens(report.computed_tokens);
    for (const SampleReport& sample : report.samples) encode_sample(sample, *group.add_samples());
  }
  response.set_generate_ms(outcome.generate_ms);
  response.set_reward_ms(outcome.reward_ms);
  response.set_generated_tokens(outcome.generated_tokens);
  response.set_prefill_tokens(outcome.prefill_tokens);
  response.set_guessed_tokens(outcome.engine.guessed_tokens);
  response.set_accepted_tokens(outcome.engine.accepted_tokens);
  response.set_cached_prompt_tokens(outcome.engine.cached_tokens);
  response.set_preemptions(outcome.engine.num_preemptions);
  response.set_draft_ms(outcome.engine.draft_ms);
}

}  // namespace nibble
