// What one step computes, and what becomes of it.
#include <algorithm>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "rollout/engine/scheduler.h"

namespace nibble {
namespace {

bool ends_at(Sequence& sequence, int32_t token) {
  const auto& ids = sequence.request.stop_ids;
  if (std::find(ids.begin(), ids.end(), token) != ids.end()) return true;
  return sequence.request.stop != nullptr && sequence.request.stop->ends_at(token);
}

// Of one while others wait to be computed too: a long one must not hold them up for long.
int64_t share_of(int64_t room, bool is_last) {
  return is_last ? room : std::max<int64_t>(1, room - room / 4);
}

}  // namespace

void StepPlan::clear() {
  tokens.clear();
  position.clear();
  slot.clear();
  first.clear();
  count.clear();
  joined.clear();
  hidden_rows.clear();
  hidden.clear();
  spans.clear();
  draws.clear();
  drawers.clear();
  guess_kind.clear();
}

void Scheduler::plan(StepPlan& plan) {
  plan.clear();
  ++num_steps_;
  make_room_for_decodes();
  admit();
  kv_.tidy();
  plan_decodes(plan);
  plan_catching_up(plan);
  if (drafter_) drafter_->ask(plan);
  NIBBLE_CHECK(plan.num_tokens() > 0 || !has_work(), "{} waiting requests cannot start",
               waiting_.size());
}

void Scheduler::plan_decodes(StepPlan& plan) {
  std::vector<Sequence*> ready;
  for (Sequence* sequence : running_) {
    if (sequence->group->is_computed() && sequence->num_behind() == 0 &&
        sequence->num_tokens() > 0) {
      ready.push_back(sequence);
    }
  }
  const size_t count = ready.size();
  if (count == 0) {
    next_decode_ = 0;
    return;
  }
  next_decode_ %= count;
  std::rotate(ready.begin(), ready.begin() + static_cast<ptrdiff_t>(next_decode_), ready.end());
  const size_t fitting = std::min(count, static_cast<size_t>(config_.max_step_tokens));
  guess(std::span(ready).first(fitting), static_cast<int64_t>(count));
  for (size_t i = 0; i < fitting; ++i) {
    const auto others = static_cast<int64_t>(count - i - 1);
    add_decode(plan, *ready[i], queries_[i].guesses,
               config_.max_step_tokens - plan.num_tokens() - 1 - others);
  }
  next_decode_ = (next_decode_ + fitting) % count;
}

// Guesses for all of them at once, what is not worth its place left out.
void Scheduler::guess(std::span<Sequence* const> sequences, int64_t num_samples) {
  queries_.resize(sequences.size());
  const int64_t room = config_.max_step_tokens - num_samples;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& sequence = *sequences[i];
    queries_[i].id = sequence.request.id;
    queries_[i].guesses.clear();
    queries_[i].most = std::max<int64_t>(
        0, std::min({config_.max_draft_tokens, room,
                     sequence.request.max_new_tokens - sequence.num_tokens() - 1}));
  }
  if (!drafter_ || room <= 0) return;
  const Stopwatch watch;
  drafter_->propose({queries_, num_samples, room}, policy_);
  totals_.draft_ms += watch.elapsed_ms();
  for (DraftQuery& query : queries_) {
    query.guesses.resize(static_cast<size_t>(policy_.num_worth(query.guesses, num_samples)));
  }
}

// The sequence's last token, and guesses behind it, up to `room`.
void Scheduler::add_decode(StepPlan& plan, Sequence& sequence, std::vector<DraftToken>& guesses,
                           int64_t room) {
  const int64_t drawn = sequence.num_tokens();
  const auto keep = [&guesses](int64_t most) {
    if (std::ssize(guesses) > most) guesses.resize(static_cast<size_t>(std::max<int64_t>(0, most)));
  };
  keep(room);
  if (!kv_.grow(sequence, drawn + std::ssize(guesses))) keep(sequence.slots - drawn);
  StepPlan::Span span{sequence.group.get(),    &sequence, plan.num_tokens(),
                      1 + std::ssize(guesses), 1,         plan.draws.size(),
                      1 + guesses.size(),      true};
  // Behind the tokens that are there, for the time of add_tokens().
  std::vector<int32_t>& tokens = sequence.completion.tokens;
  for (const DraftToken& guess : guesses) tokens.push_back(guess.token);
  add_tokens(plan, span, sequence);
  tokens.resize(static_cast<size_t>(drawn));
  for (int64_t i = 0; i < span.num_tokens; ++i) {
    add_draw(plan, sequence, span.row + i, i,
             i == 0 ? -1 : DraftPolicy::kind_of(guesses[static_cast<size_t>(i - 1)]));
  }
}

// Prompts, and what sequences have besides their last token and is computed anew, in their order:
// else later prompts could hold up an earlier sequence that lost its cache for ever.
void Scheduler::plan_catching_up(StepPlan& plan) {
  std::vector<Sequence*> behind;  // of a prompt one member, whose lane serves all
  for (Sequence* sequence : running_) {
    Group& group = *sequence->group;
    const bool is_prompt = !group.is_computed();
    if (is_prompt ? group.planned_in == static_cast<uint64_t>(num_steps_)
                  : sequence->num_behind() == 0) {
      continue;
    }
    if (is_prompt) group.planned_in = static_cast<uint64_t>(num_steps_);
    behind.push_back(sequence);
  }
  for (size_t i = 0; i < behind.size(); ++i) {
    const int64_t room = config_.max_step_tokens - plan.num_tokens();
    if (room == 0) return;
    const int64_t share = share_of(room, i + 1 == behind.size());
    if (behind[i]->group->is_computed()) {
      const int64_t chunk = std::min(share, behind[i]->num_behind());
      add_tokens(plan, {behind[i]->group.get(), behind[i], plan.num_tokens(), chunk, chunk},
                 *behind[i]);
    } else {
      add_prompt(plan, *behind[i], share);
    }
  }
}

// Tokens of its prompt, up to `room`; behind the last one all members draw their first.
void Scheduler::add_prompt(StepPlan& plan, const Sequence& sequence, int64_t room) {
  Group& group = *sequence.group;
  const int64_t chunk = std::min(room, group.prompt_tokens() - group.computed);
  add_tokens(plan, {&group, nullptr, plan.num_tokens(), chunk, chunk, plan.draws.size()}, sequence);
  if (group.computed + chunk < group.prompt_tokens()) return;
  for (Sequence* member : group.members) {
    // Others have their first token from before the prompt was computed anew.
    if (member->num_tokens() > 0) continue;
    add_draw(plan, *member, plan.num_tokens() - 1, 0, -1);
    ++plan.spans.back().num_draws;
  }
}

void Scheduler::add_tokens(StepPlan& plan, const StepPlan::Span& span,
                           const Sequence& lane_of) const {
  const int64_t table_row = lane_of.lane * config_.max_positions;
  const int64_t start = span.sequence == nullptr
                            ? span.group->computed
                            : span.group->prompt_tokens() + span.sequence->computed;
  for (int64_t p = start; p < start + span.num_tokens; ++p) {
    const int64_t in_response = p - span.group->prompt_tokens();
    plan.tokens.push_back(span.sequence == nullptr
                              ? span.group->prompt[static_cast<size_t>(p)]
                              : span.sequence->completion.tokens[static_cast<size_t>(in_response)]);
    plan.position.push_back(static_cast<int32_t>(p));
    plan.slot.push_back(kv_.slot_table()[table_row + p]);
    plan.first.push_back(table_row);
    plan.count.push_back(static_cast<int32_t>(p + 1));
  }
  plan.spans.push_back(span);
}

// `ahead` guessed tokens lie before the token that is drawn, the last of them of this kind.
void Scheduler::add_draw(StepPlan& plan, Sequence& sequence, int64_t row, int64_t ahead, int kind) {
  const GenerateRequest& request = sequence.request;
  const int64_t position = sequence.group->prompt_tokens() + sequence.num_tokens() + ahead;
  plan.draws.push_back({row, request.sampling, uniform_at(request, position), -1,
                        request.want_plain_log_probs, request.num_top_log_probs});
  plan.drawers.push_back(&sequence);
  plan.guess_kind.push_back(kind);
}

void Scheduler::accept(StepPlan& plan, int64_t version) {
  for (StepPlan::Span& span : plan.spans) {
    if (span.is_decode) {
      span.num_kept = accept_decode(plan, span, version);
      continue;
    }
    for (size_t i = span.first_draw; i < span.first_draw + span.num_draws; ++i) {
      add_token(*plan.drawers[i], plan.draws[i], version);
    }
  }
  if (drafter_) drafter_->observe(plan);
}

// Tokens as they were drawn, as long as the guess before each was right. What is drawn behind a
// right guess is what would be drawn without it: the same logits, the same random number.
int64_t Scheduler::accept_decode(StepPlan& plan, const StepPlan::Span& span, int64_t version) {
  Sequence& sequence = *span.sequence;
  ++totals_.decode_spans;
  for (size_t i = 0; i < span.num_draws; ++i) {
    const Draw& draw = plan.draws[span.first_draw + i];
    add_token(sequence, draw, version);
    ++totals_.decoded_tokens;
    const auto kept = static_cast<int64_t>(i) + 1;
    if (i + 1 == span.num_draws) return kept;
    const int32_t guess = plan.tokens[static_cast<size_t>(span.row) + i + 1];
    const bool is_right = guess == draw.token;
    ++totals_.guessed_tokens;
    policy_.observe_guess(plan.guess_kind[span.first_draw + i + 1], is_right);
    if (is_right) ++totals_.accepted_tokens;
    if (!is_right || sequence.finished) {
      // Those behind it were computed in vain, too.
      totals_.guessed_tokens += static_cast<int64_t>(span.num_draws - i) - 2;
      return kept;
    }
  }
  return span.num_tokens;
}

void Scheduler::add_token(Sequence& sequence, const Draw& draw, int64_t version) {
  Completion& completion = sequence.completion;
  completion.tokens.push_back(draw.token);
  completion.log_probs.push_back(draw.log_prob);
  completion.versions.push_back(version);
  if (sequence.request.want_plain_log_probs) {
    completion.plain_log_probs.push_back(draw.plain_log_prob);
  }
  if (sequence.request.num_top_log_probs > 0) completion.top_log_probs.push_back(draw.top);
  if (drafter_) drafter_->extend(completion.id, draw.token);
  if (sequence.request.on_token) sequence.request.on_token(completion);
  if (ends_at(sequence, draw.token)) {
    sequence.finished = FinishReason::kStop;
  } else if (sequence.num_tokens() == sequence.request.max_new_tokens) {
    sequence.finished = FinishReason::kLength;
  }
}

void Scheduler::commit(const StepPlan& plan) {
  for (const StepPlan::Span& span : plan.spans) {
    const bool is_prompt = span.sequence == nullptr;
    int64_t& computed = is_prompt ? span.group->computed : span.sequence->computed;
    int64_t& routed = is_prompt ? span.group->routed : span.sequence->routed;
    computed += span.num_kept;
    routed = std::max(routed, computed);
    if (!is_prompt) continue;
    totals_.prompt_tokens += span.num_kept;
    if (span.group->is_computed()) kv_.share_prompt(*span.group);
  }
  std::vector<Sequence*> ended;
  for (Sequence* sequence : plan.drawers) {
    if (sequence->finished && (ended.empty() || ended.back() != sequence))
      ended.push_back(sequence);
  }
  for (Sequence* sequence : ended) finish(*sequence, *sequence->finished);
}

}  // namespace nibble
