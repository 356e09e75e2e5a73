#include "coordinator/supervised_loop.h"

#include "coordinator/run_files.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/log.h"

namespace nibble {

using std::chrono::milliseconds;

namespace {

constexpr const char* kNextRecord = "next_record";

// What a checkpoint says; `usual` if it is of an earlier build, which took as many records in every
// step.
int64_t place_of(const std::string& state, int64_t usual) {
  if (state.empty()) return usual;
  const Json json = parse_json(state, "the checkpoint's place in the data");
  if (!json.is_object() || !json.contains(kNextRecord) || !json[kNextRecord].is_number_unsigned()) {
    fail(ErrorCode::kInvalidArgument, "the checkpoint's place in the data is no number: {}", state);
  }
  return json[kNextRecord].get<int64_t>();
}

}  // namespace

SupervisedLoop::SupervisedLoop(CoordinatorConfig config, SupervisedPlan plan,
                               Membership& membership,
                               std::vector<std::filesystem::path> checkpoints)
    : config_(std::move(config)),
      plan_(plan),
      membership_(membership),
      resume_from_(std::move(checkpoints)),
      is_new_(resume_from_.empty() || begins_elsewhere(config_.run.directory, resume_from_)),
      store_(prepare_run_directory(config_.run.directory) / "run.db") {}

void SupervisedLoop::start() {
  const milliseconds timeout(config_.cluster.start_timeout_ms);
  membership_.wait_complete(Deadline::after(timeout));
  trainers_.emplace(membership_.trainers(), timeout);
  checkpoints_.emplace(config_.run.directory, config_.checkpoint.keep, *trainers_);
  const int64_t records = trainers_->start();
  const CheckpointStart start = trainers_->load_first_whole(resume_from_);
  summary_.steps = start.step;
  next_record_ = place_of(start.rollout_state, start.step * plan_.records_per_step);
  note_fallback(resume_from_, start.step, store_);
  stream_.emplace(records, static_cast<uint64_t>(config_.run.seed), config_.data.shuffle);
  store_.rewind_to(summary_.steps);
  metrics_ = std::make_unique<MetricsLog>(config_.run.directory / "metrics.jsonl", store_,
                                          is_new_ ? -1 : summary_.steps);
}

RunSummary SupervisedLoop::run(const std::atomic<bool>& interrupt) {
  start();
  summary_.interrupted = interrupt;  // while the job started: nothing to finish, nothing to save
  if (is_new_ && !summary_.interrupted) {
    evaluate(summary_.steps);
    summary_.first_eval = summary_.last_eval;
  }
  while (summary_.steps < config_.run.steps && !summary_.interrupted) {
    membership_.check_leases();
    checkpoints_->check();
    const int64_t step = summary_.steps + 1;
    run_step(step);
    summary_.steps = step;
    const bool last = step == config_.run.steps;
    if (step % config_.eval.every == 0 || last) evaluate(step);
    summary_.interrupted = interrupt && !last;
    if (step % config_.checkpoint.every == 0 || last || summary_.interrupted) {
      checkpoints_->save(step, 0, [&] { return Json{{kNextRecord, next_record_}}.dump(); });
    }
  }
  checkpoints_->finish();
  membership_.stop();
  return summary_;
}

void SupervisedLoop::run_step(int64_t step) {
  const Stopwatch whole;
  store_.begin_step(step, unix_ms());
  std::vector<int64_t> records;
  for (int64_t i = 0; i < plan_.records_per_step; ++i) {
    records.push_back(stream_->index_at(next_record_ + i));
  }
  MetricsRow row(step);
  for (const auto& [name, value] : trainers_->figures([&](TrainerClient& trainer) {
         return trainer.train_records(step, records, plan_.timeout);
       })) {
    row.set(name, value);
  }
  next_record_ += plan_.records_per_step;
  const double step_ms = whole.elapsed_ms();
  row.set("step_ms", step_ms);
  row.set("tokens_per_s", row.get("tokens") / step_ms * 1000.0);
  metrics_->write(row);
  store_.end_step(step, StepStatus::kDone, unix_ms());
  pace_.add(step_ms);
  report(row);
}

void SupervisedLoop::evaluate(int64_t step) {
  if (config_.eval.data.empty()) return;
  const Stopwatch clock;
  const RecordsLoss loss = trainers_->evaluate_records(step, plan_.timeout);
  MetricsRow row(step);
  row.set("eval_loss", loss.loss);
  row.set("eval_tokens", static_cast<double>(loss.tokens));
  row.set("eval_records", static_cast<double>(loss.records));
  row.set("eval_ms", clock.elapsed_ms());
  metrics_->write(row);
  summary_.last_eval = loss.loss;
  get_logger("run")->info("eval step={} loss={:.4f} tokens={} records={}", step, loss.loss,
                          loss.tokens, loss.records);
}

void SupervisedLoop::report(const MetricsRow& row) {
  get_logger("run")->info(
      "step={}/{} loss={:.4f} grad={:.3f} lr={:.2e} tokens={:.0f} tokens_per_s={:.0f} s={:.2f} "
      "eta={}",
      row.step(), config_.run.steps, row.get("loss"), row.get("grad_norm"), row.get("lr"),
      row.get("tokens"), row.get("tokens_per_s"), row.get("step_ms") / 1000.0,
      pace_.time_left(config_.run.steps - row.step()));
}

}  // namespace nibble
