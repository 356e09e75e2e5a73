#include "rollout/server/api_call.h"

#include <fmt/format.h>

#include <utility>

#include "core/base/log.h"
#include "rollout/server/request_error.h"

namespace nibble {
namespace {

Outcome outcome_of_error(ErrorCode code) {
  if (code == ErrorCode::kCancelled) return Outcome::kClientGone;
  return outcome_of(http_status(code));
}

}  // namespace

ApiCall::ApiCall(ApiRequest request, const ServedModel& model, ServerMetrics& metrics,
                 std::string id, std::shared_ptr<HttpReply> reply)
    : request_(std::move(request)),
      model_(model),
      metrics_(metrics),
      codec_(request_, model, id),
      id_(std::move(id)),
      reply_(std::move(reply)),
      progress_(static_cast<size_t>(request_.num_answers())),
      answers_(static_cast<size_t>(request_.num_answers())),
      scored_(request_.prompts.size()) {
  for (size_t i = 0; i < answers_.size(); ++i) {
    answers_[i].part.index = static_cast<int64_t>(i);
    if (request_.endpoint == Endpoint::kGenerate) continue;
    answers_[i].text = std::make_unique<AnswerText>(*model.tokenizer, request_.stop,
                                                    DecodeOptions{request_.skips_special});
  }
  usage_.prompt_tokens = request_.num_prompt_tokens();
}

void ApiCall::count(Outcome outcome) {
  metrics_.count_request(endpoint_path(request_.endpoint), outcome);
  get_logger("serve")->debug("request={} outcome={} prompt_tokens={} generated_tokens={} ms={:.0f}",
                             id_, outcome_name(outcome), usage_.prompt_tokens,
                             usage_.completion_tokens, since_arrival_.elapsed_ms());
}

EngineJob ApiCall::job(uint64_t random_seed, Deadline deadline) {
  const uint64_t seed = request_.seed ? static_cast<uint64_t>(*request_.seed) : random_seed;
  EngineJob job{.samples = engine_requests(request_, model_, seed),
                .prompts_to_score = {},
                .num_top_of_prompts = request_.num_top_log_probs,
                .deadline = deadline,
                .listener = shared_from_this()};
  if (request_.wants_echo && request_.wants_log_probs) job.prompts_to_score = request_.prompts;
  num_missing_ = job.size();
  return job;
}

void ApiCall::begin() {
  metrics_.count_prompt_tokens(usage_.prompt_tokens);
  if (is_streaming()) reply_->begin_stream();
  finish_if_done();  // an echo without anything to compute
}

void ApiCall::refuse(const HttpResponse& response) {
  is_over_ = true;
  count(outcome_of(response.status));
  reply_->send(response);
}

void ApiCall::token_drawn(size_t sample, const Completion& so_far) {
  Progress& progress = progress_[sample];
  if (!progress.has_first) {
    progress.has_first = true;
    progress.first_ms = since_arrival_.elapsed_ms();
    metrics_.add_time_to_first_token(progress.first_ms / 1e3);
  }
  if (!is_streaming()) return;
  std::vector<AnswerToken> tokens;
  for (; progress.num_told < so_far.tokens.size(); ++progress.num_told) {
    append_token(so_far, progress.num_told, tokens);
  }
  reply_->post([self = shared_from_this(), sample, tokens = std::move(tokens)]() mutable {
    if (self->is_over_) return;
    self->add_tokens(sample, std::move(tokens));
    self->send_part(self->answers_[sample]);
  });
}

void ApiCall::sample_done(size_t sample, Completion done) {
  Progress& progress = progress_[sample];
  metrics_.count_generated_tokens(std::ssize(done.tokens));
  if (done.tokens.size() > 1) {
    const double ms = since_arrival_.elapsed_ms() - progress.first_ms;
    metrics_.add_time_per_token(ms / 1e3 / static_cast<double>(done.tokens.size() - 1));
  }
  std::vector<AnswerToken> tokens;
  for (; progress.num_told < done.tokens.size(); ++progress.num_told) {
    append_token(done, progress.num_told, tokens);
  }
  auto held = std::make_shared<Completion>(std::move(done));  // shared: tasks are copied
  reply_->post([self = shared_from_this(), sample, held, tokens = std::move(tokens)]() mutable {
    if (self->is_over_) return;
    self->add_tokens(sample, std::move(tokens));
    self->finish_sample(sample, *held);
  });
}

void ApiCall::prompt_scored(size_t prompt, std::vector<GivenToken> tokens) {
  auto held = std::make_shared<std::vector<GivenToken>>(std::move(tokens));
  reply_->post([self = shared_from_this(), prompt, held] {
    if (self->is_over_) return;
    self->scored_[prompt] = std::move(*held);
    --self->num_missing_;
    self->finish_if_done();
  });
}

void ApiCall::failed(const Error& error) {
  reply_->post([self = shared_from_this(), error] {
    self->fail_with(http_status(error.code()), error.what(), outcome_of_error(error.code()));
  });
}

void ApiCall::add_tokens(size_t sample, std::vector<AnswerToken> tokens) {
  Answer& answer = answers_[sample];
  for (AnswerToken& token : tokens) {
    if (answer.text) {
      token.text_offset = answer.text->num_characters();
      answer.part.text += answer.text->push(token.id);
    }
    answer.part.tokens.push_back(std::move(token));
  }
}

void ApiCall::finish_sample(size_t sample, Completion& done) {
  Answer& answer = answers_[sample];
  if (answer.text) answer.part.text += answer.text->finish();
  answer.part.reason = done.reason;
  answer.part.cached_prompt_tokens = done.cached_prompt_tokens;
  answer.part.routes = std::move(done.routes);
  answer.is_done = true;
  usage_.completion_tokens += std::ssize(done.tokens);
  // The other samples of a prompt have it from the first.
  if (sample % static_cast<size_t>(request_.num_samples) == 0) {
    usage_.cached_tokens += done.cached_prompt_tokens;
  }
  if (is_streaming()) send_part(answer);
  --num_missing_;
  finish_if_done();
}

// Writes what an answer of a stream has gained, if that is worth an event.
void ApiCall::send_part(Answer& answer) {
  AnswerPart& part = answer.part;
  const bool shows_tokens = request_.wants_log_probs && !part.tokens.empty();
  if (part.text.empty() && !shows_tokens && !part.reason) return;
  std::string events;
  if (!answer.has_begun) events = codec_.first_event(part.index);
  answer.has_begun = true;
  reply_->write(events + codec_.event(part));
  part.text.clear();
  part.tokens.clear();
}

// Puts the prompts before the answers, with what is known of their tokens.
void ApiCall::add_prompts() {
  for (size_t i = 0; i < answers_.size(); ++i) {
    AnswerPart& part = answers_[i].part;
    const size_t prompt = i / static_cast<size_t>(request_.num_samples);
    StreamDecoder decoder(*model_.tokenizer);
    std::string text;
    std::vector<AnswerToken> tokens;
    int64_t characters = 0;
    for (size_t t = 0; t < request_.prompts[prompt].size(); ++t) {
      AnswerToken& token = tokens.emplace_back();
      token.id = request_.prompts[prompt][t];
      token.text_offset = characters;
      if (t > 0 && t <= scored_[prompt].size()) {
        token.plain_log_prob = scored_[prompt][t - 1].plain_log_prob;
        token.top = scored_[prompt][t - 1].top;
      }
      const std::string piece = decoder.push(token.id);
      characters += count_characters(piece);
      text += piece;
    }
    const std::string rest = decoder.finish();
    characters += count_characters(rest);
    for (AnswerToken& token : part.tokens) token.text_offset += characters;
    part.text = text + rest + part.text;
    part.tokens.insert(part.tokens.begin(), tokens.begin(), tokens.end());
    if (!part.reason) part.reason = FinishReason::kLength;  // nothing was to be drawn
  }
}

void ApiCall::finish_if_done() {
  if (is_over_ || num_missing_ > 0) return;
  is_over_ = true;
  count(Outcome::kOk);
  if (is_streaming()) {
    if (request_.wants_usage) reply_->write(codec_.usage_event(usage_));
    reply_->write(std::string(kSseDone));
    return reply_->end();
  }
  if (request_.wants_echo) add_prompts();
  std::vector<AnswerPart> parts;
  for (Answer& answer : answers_) parts.push_back(std::move(answer.part));
  HttpResponse response;
  response.body = codec_.whole(parts, usage_);
  reply_->send(std::move(response));
}

void ApiCall::fail_with(int status, const std::string& message, Outcome outcome) {
  if (is_over_) return;
  is_over_ = true;
  count(outcome);
  if (!is_streaming()) return reply_->send(error_response(status, message));
  // The status has been sent: an event says what went wrong, and no [DONE] follows.
  reply_->write(sse_event(error_object(status, message)));
  reply_->end();
}

}  // namespace nibble
