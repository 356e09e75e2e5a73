#include "cli/offline_generator.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <utility>

#include "cli/model_engine.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "rollout/text_stop.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSamples = 1 << 16;
constexpr int64_t kMaxRunning = 4096;
// Samples in flight for each that runs: what hides the tail of the longest one.
constexpr int64_t kAhead = 4;
constexpr int64_t kMaxDraft = 64;

void check_range(const char* flag, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from 1 to {}", flag, value, most);
}

int64_t position_limit(const LoadedModel& model, const SamplingFlags& flags) {
  return std::min({model.spec.config.max_position, flags.max_positions, flags.kv_tokens});
}

EngineConfig engine_config(const LoadedModel& model, const SamplingFlags& flags) {
  EngineConfig config;
  config.max_running = flags.max_running;
  // Room for prompts beside a full batch.
  config.max_step_tokens += flags.max_running;
  config.kv_slots = flags.kv_tokens;
  config.max_draft_tokens = flags.max_draft_tokens;
  config.max_positions = std::min(model.spec.config.max_position, flags.max_positions);
  config.max_requests = kAhead * flags.max_running + flags.samples;
  return config;
}

void check_is_on_cpu(const LoadedModel& model) {
  if (!model.gpu) return;
  fail(ErrorCode::kUnimplemented,
       "--train-draft-head trains on the CPU, where the model must be too; give --device cpu");
}

}  // namespace

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  add_model_flags(command, flags.model);
  command.add_option("--tokenizer", flags.tokenizer,
                     "directory of the tokenizer, if not the model's");
  command.add_option("--max-new-tokens", flags.max_new_tokens, "longest response, in tokens")
      ->capture_default_str();
  command.add_option("--samples", flags.samples, "responses to each prompt")->capture_default_str();
  command.add_option("--temperature", flags.sampling.temperature, "divides the logits; 0: greedy")
      ->capture_default_str();
  command.add_option("--top-p", flags.sampling.top_p, "nucleus that may be drawn; 1: all")
      ->capture_default_str();
  command
      .add_option("--top-k", flags.sampling.top_k, "most likely tokens that may be drawn; 0: all")
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "of the random draws")->capture_default_str();
  command.add_option("--stop", flags.stop, "text that ends a response; may be repeated");
  command.add_option("--max-running", flags.max_running, "sequences that decode together")
      ->capture_default_str();
  command
      .add_option("--max-positions", flags.max_positions, "longest prompt and response together")
      ->capture_default_str();
  command
      .add_option("--max-draft-tokens", flags.max_draft_tokens,
                  "tokens of a sample guessed ahead in a step; the samples stay the same; 0: none")
      ->capture_default_str();
  add_draft_flags(command, flags.draft);
  command.add_option("--train-draft-head", flags.train_draft_head,
                     "directory to write the --draft-head to after training it on what is drawn "
                     "meanwhile; changes no sample; on a CPU");
  command.add_option("--kv-tokens", flags.kv_tokens, "capacity of the KV cache, in tokens")
      ->capture_default_str();
}

void check_sampling_flags(const SamplingFlags& flags) {
  check_model_flags(flags.model);
  check_range("--max-new-tokens", flags.max_new_tokens, int64_t{1} << 24);
  check_range("--samples", flags.samples, kMaxSamples);
  check_range("--max-running", flags.max_running, kMaxRunning);
  check_range("--max-positions", flags.max_positions, int64_t{1} << 24);
  check_range("--kv-tokens", flags.kv_tokens, int64_t{1} << 28);
  if (flags.max_draft_tokens < 0 || flags.max_draft_tokens > kMaxDraft) {
    fail(ErrorCode::kInvalidArgument, "--max-draft-tokens is {}; it must be from 0 to {}",
         flags.max_draft_tokens, kMaxDraft);
  }
  check_draft_flags(flags.draft, flags.max_draft_tokens);
  if (!flags.train_draft_head.empty() && flags.draft.draft_head.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--train-draft-head '{}' trains nothing without --draft-head; give both, such as "
         "--draft-head random",
         flags.train_draft_head.string());
  }
  if (flags.seed < 0) {
    fail(ErrorCode::kInvalidArgument, "--seed is {}; it must be at least 0", flags.seed);
  }
  const kernels::SamplingParams& p = flags.sampling;
  if (p.temperature != 0.0f && !(p.temperature >= 1e-3f && p.temperature <= 1e3f)) {
    fail(ErrorCode::kInvalidArgument,
         "--temperature is {}; it must be 0 (greedy) or from 0.001 to 1000", p.temperature);
  }
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) {
    fail(ErrorCode::kInvalidArgument, "--top-p is {}; it must be above 0 and at most 1", p.top_p);
  }
  if (p.top_k < 0) {
    fail(ErrorCode::kInvalidArgument, "--top-k is {}; it must be at least 0 (0: all)", p.top_k);
  }
  if (!flags.stop.empty()) (void)StopStrings(flags.stop);
}

OfflineGenerator::OfflineGenerator(const LoadedModel& model, const TextCodec& codec,
                                   const SamplingFlags& flags)
    : codec_(codec),
      flags_(flags),
      max_position_(model.spec.config.max_position),
      limit_(position_limit(model, flags)),
      vocab_(model.spec.config.vocab),
      weights_(model.weights) {
  Drafts drafts = load_drafts(model, flags.model, flags.draft);
  if (!flags.train_draft_head.empty()) {
    check_is_on_cpu(model);
    coach_ = std::make_unique<HeadCoach>(drafts.head, model.spec, HeadCoach::Options());
    drafts.examples = &coach_->examples();
  }
  engine_ = make_engine(model, flags.model, engine_config(model, flags), drafts);
  if (!flags.stop.empty()) (void)codec.tokenizer();
}

bool OfflineGenerator::has_room() const {
  const int64_t held = std::ssize(groups_) * flags_.samples;
  return groups_.empty() || held + flags_.samples <= kAhead * flags_.max_running;
}

void OfflineGenerator::submit(std::vector<int32_t> prompt, const std::string& where) {
  if (prompt.empty()) fail(ErrorCode::kInvalidArgument, "{}: the prompt has no tokens", where);
  const auto tokens = static_cast<int64_t>(prompt.size());
  if (flags_.max_new_tokens - 1 > limit_ - tokens) {
    fail(ErrorCode::kInvalidArgument,
         "{}: {} prompt tokens and --max-new-tokens {} do not fit into {} positions; the model "
         "takes {}, --max-positions allows {} and --kv-tokens {}",
         where, tokens, flags_.max_new_tokens, limit_, max_position_, flags_.max_positions,
         flags_.kv_tokens);
  }
  const auto bad = std::find_if(prompt.begin(), prompt.end(),
                                [this](int32_t id) { return id < 0 || id >= vocab_; });
  if (bad != prompt.end()) {
    fail(ErrorCode::kInvalidArgument, "{}: token id {} is outside the model's vocabulary of {}",
         where, *bad, vocab_);
  }
  const uint64_t number = first_prompt_ + groups_.size();
  std::vector<GenerateRequest> requests;
  for (int64_t s = 0; s < flags_.samples; ++s) {
    GenerateRequest request;
    request.id = number * static_cast<uint64_t>(flags_.samples) + static_cast<uint64_t>(s);
    request.prompt_id = number;
    request.sample_index = static_cast<uint32_t>(s);
    request.prompt = prompt;
    request.max_new_tokens = flags_.max_new_tokens;
    request.sampling = flags_.sampling;
    request.seed = static_cast<uint64_t>(flags_.seed);
    request.stop_ids = codec_.stop_ids();
    if (!flags_.stop.empty()) {
      request.stop = std::make_unique<TextStop>(codec_.tokenizer(), flags_.stop);
    }
    requests.push_back(std::move(request));
  }
  const SubmitOutcome outcome = engine_->submit(std::move(requests));
  NIBBLE_CHECK(outcome == SubmitOutcome::kAccepted, "the queue is full at prompt {}", number);
  groups_.push_back({flags_.samples, std::vector<Completion>(static_cast<size_t>(flags_.samples))});
}

void OfflineGenerator::step() {
  engine_->step();
  if (coach_) coach_->after_step(*engine_, *weights_);
  for (Completion& done : engine_->take_finished()) {
    const auto samples = static_cast<uint64_t>(flags_.samples);
    Group& group = groups_[done.id / samples - first_prompt_];
    --group.missing;
    group.samples[done.id % samples] = std::move(done);
  }
}

std::optional<std::vector<Completion>> OfflineGenerator::take_next() {
  if (groups_.empty() || groups_.front().missing > 0) return std::nullopt;
  std::vector<Completion> samples = std::move(groups_.front().samples);
  groups_.pop_front();
  ++first_prompt_;
  return samples;
}

void OfflineGenerator::finish() const {
  if (!coach_) return;
  coach_->save(flags_.train_draft_head);
  get_logger("draft")->info(
      "trained the draft head in {} steps, cross-entropy {:.3f}, {:.1f} MB of host memory; it is "
      "in "
      "'{}'",
      coach_->num_steps(), coach_->loss(), static_cast<double>(coach_->num_bytes()) / 1e6,
      flags_.train_draft_head.string());
}

}  // namespace nibble
