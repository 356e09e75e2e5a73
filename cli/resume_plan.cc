#include "cli/resume_plan.h"

#include <climits>

#include "cli/job_kind.h"
#include "coordinator/run_files.h"
#include "core/base/fail.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/checkpoint/checkpoint_list.h"
#include "core/checkpoint/hf_directory.h"
#include "trainer/state/train_checkpoint.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = 1 << 20;

bool is_own_directory(const RunConfig& config, const fs::path& run) {
  std::error_code error;
  return run.empty() || fs::equivalent(run, config.run.directory, error);
}

void check_directory(const RunConfig& config, const ResumeWish& wish, bool elsewhere) {
  const fs::path& own = config.run.directory;
  if (!wish.wanted && fs::exists(own / "metrics.jsonl")) {
    fail(ErrorCode::kInvalidArgument,
         "run directory '{}' holds a run; add --resume to go on with it, or choose another "
         "run.directory",
         own.string());
  }
  if (elsewhere && !list_checkpoints(own / "checkpoints").empty()) {
    fail(ErrorCode::kInvalidArgument,
         "run directory '{}' has checkpoints of its own, so it cannot begin at those of '{}': give "
         "--resume without a run to go on with it, or choose another run.directory",
         own.string(), wish.run.string());
  }
}

// Those that can be read, newest first.
std::vector<fs::path> whole_checkpoints(const fs::path& run) {
  auto found = list_checkpoints(run / "checkpoints");
  std::vector<fs::path> whole;
  for (; !found.empty(); found.pop_back()) {
    try {
      (void)CheckpointReader(found.back().path);
      whole.push_back(found.back().path);
    } catch (const Error& error) {
      if (found.size() == 1 && whole.empty()) {
        fail(error.code(), "{}; no checkpoint of the run is whole: remove '{}' to begin anew",
             error.what(), found.back().path.string());
      }
      get_logger("run")->warn("checkpoint '{}' is passed over: {}", found.back().path.string(),
                              error.what());
    }
  }
  return whole;
}

// The job that wrote a checkpoint. Those of earlier builds do not say; then it is what the run was
// last, if that can be read.
std::optional<RunConfig> job_before(const CheckpointReader& checkpoint, const fs::path& run) {
  const std::string& kept = checkpoint.progress().job_config;
  try {
    return parse_effective_yaml(kept.empty() ? read_file(run / "config.yaml", kMaxConfigBytes)
                                             : kept);
  } catch (const Error& error) {
    get_logger("run")->warn("what the run was before is not to be read: {}", error.what());
    return std::nullopt;
  }
}

void check_steps(const RunConfig& now, int64_t reached, bool elsewhere) {
  if (now.run.steps > reached || (!elsewhere && now.run.steps == reached)) return;
  fail(ErrorCode::kInvalidArgument,
       "run.steps is {}, but the checkpoint to go on from is of step {}: nothing is left to do; "
       "steps count from the first run's beginning, raise run.steps",
       now.run.steps, reached);
}

// Masters and moments are of one model, and of one way to derive codes from them; and a place in
// the data means another thing in another kind of job.
void check_changes(const RunConfig& before, const RunConfig& now,
                   const CheckpointReader& checkpoint) {
  if (is_supervised(before) != is_supervised(now)) {
    const auto kind = [](const RunConfig& c) { return is_supervised(c) ? "sft" : "of rollouts"; };
    fail(ErrorCode::kInvalidArgument,
         "algorithm.loss was {} and is {}: such a run does not go on, it begins anew; `nibble "
         "export --to bf16` the checkpoint '{}' and name the result in model.path",
         kind(before), kind(now), checkpoint.path().string());
  }
  if (checkpoint.holds_scales() != (now.qat.start == QatStart::kCalibrated)) {
    const auto start = [](bool holds) { return holds ? "calibrated" : "rtn"; };
    fail(ErrorCode::kInvalidArgument,
         "qat.start was {} and is {}: the masters of checkpoint '{}' were not trained in those "
         "scales; resume it with the qat.start that it has, or export it and begin anew",
         start(checkpoint.holds_scales()), start(!checkpoint.holds_scales()),
         checkpoint.path().string());
  }
  check_same_adapters(checkpoint, now.lora.shape());
  const ModelConfig model =
      parse_model_config(read_hf_config(now.model.path), (now.model.path / "config.json").string());
  if (const auto field = computed_difference(checkpoint.spec().config, model)) {
    fail(ErrorCode::kInvalidArgument,
         "model.path was '{}' and is '{}', another model: config.json differs in '{}' from that of "
         "checkpoint '{}'",
         before.model.path.string(), now.model.path.string(), *field, checkpoint.path().string());
  }
}

// The run at whose checkpoint this one began, if it ended before it had one of its own; else empty.
fs::path origin_without_checkpoints(const RunConfig& config) {
  const fs::path& own = config.run.directory;
  const fs::path note = origin_file(own);
  if (!fs::exists(note) || !list_checkpoints(checkpoints_of(own)).empty()) return {};
  return read_file(note, PATH_MAX);
}

}  // namespace

std::string ResumePlan::message() const {
  std::string text = fmt::format("resumed from {}", checkpoints.at(0).filename().string());
  if (from_another_run) {
    text += fmt::format(" of run '{}'", checkpoints.at(0).parent_path().parent_path().string());
  }
  for (size_t i = 0; i < changed.size(); ++i) {
    text += fmt::format("{}{}: {} -> {}", i == 0 ? " with other values: " : ", ", changed[i].key,
                        changed[i].before, changed[i].after);
  }
  return text;
}

ResumePlan plan_resume(const RunConfig& config, const ResumeWish& asked) {
  ResumePlan plan;
  ResumeWish wish = asked;
  if (wish.wanted && wish.run.empty()) wish.run = origin_without_checkpoints(config);
  plan.from_another_run = wish.wanted && !is_own_directory(config, wish.run);
  check_directory(config, wish, plan.from_another_run);
  if (!wish.wanted) return plan;
  const fs::path& run = plan.from_another_run ? wish.run : config.run.directory;
  plan.checkpoints = whole_checkpoints(run);
  if (plan.checkpoints.empty()) {
    if (!plan.from_another_run) return plan;
    fail(ErrorCode::kNotFound,
         "--resume: '{}' is no run directory with a finished checkpoint to go on from",
         run.string());
  }
  const CheckpointReader newest(plan.checkpoints[0]);
  check_steps(config, newest.progress().step, plan.from_another_run);
  const auto before = job_before(newest, run);
  if (!before) return plan;
  check_changes(*before, config, newest);
  plan.changed = changed_values(config, *before);
  // To go on for longer, and elsewhere, is what resuming is for.
  std::erase_if(plan.changed, [&](const ChangedValue& value) {
    return value.key == "run.steps" || value.key == "run.directory";
  });
  return plan;
}

}  // namespace nibble
