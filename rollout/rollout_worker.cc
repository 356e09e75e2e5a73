#include "rollout/rollout_worker.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "rollout/draft_model.h"
#include "rollout/engine/head_drafter.h"
#include "rollout/engine/lookup_drafter.h"
#include "rollout/engine_cuda/cuda_step_runner.h"
#include "rollout/prompt_length.h"
#include "rollout/text_stop.h"
#include "weight_sync/manifest.h"

namespace nibble {
namespace {

constexpr size_t kMaxReportText = 4096;
constexpr size_t kKeptSteps = 2;

EngineConfig engine_config(const RolloutConfig& c) {
  EngineConfig config;
  config.max_running = c.max_running;
  config.max_step_tokens = c.max_step_tokens;
  config.kv_slots = c.kv_tokens;
  config.max_positions = c.max_positions;
  config.max_draft_tokens = c.max_draft_tokens;
  config.max_requests =
      std::max<int64_t>(config.max_requests, c.prompts_per_step * c.samples_per_prompt);
  return config;
}

ModelSpec spec_of(const std::filesystem::path& directory) {
  const HfDirectory model(directory);
  return make_model_spec(parse_model_config(model.config(), (directory / "config.json").string()));
}

// Weights, buffers and cache of the engine, and of the draft model beside it.
struct EngineMemory {
  int64_t weights = 0;
  CudaEngineMemory runners;
};
EngineMemory memory_of(const ModelSpec& spec, const EngineConfig& config, int64_t weights,
                       const DraftModel* draft) {
  EngineMemory memory{weights, cuda_engine_memory(spec, config)};
  if (draft == nullptr) return memory;
  const CudaEngineMemory own =
      cuda_engine_memory(draft->spec, cuda_draft_config(config, draft->spec));
  memory.weights += draft->weights->num_bytes();
  memory.runners.fixed_bytes += own.fixed_bytes;
  memory.runners.bytes_per_slot += own.bytes_per_slot;
  return memory;
}

// Sizes on a GPU: KV slots from what is left, logits for every sequence of a batch.
EngineConfig gpu_engine_config(const RolloutWorkerOptions& options, const ModelSpec& spec,
                               const DraftModel* draft) {
  EngineConfig config = engine_config(options.rollout);
  config.max_logit_rows =
      std::max<int64_t>(config.max_logit_rows, std::min<int64_t>(config.max_running, 1024));
  // Guesses are checked in steps that CUDA graphs cover too.
  if (config.max_draft_tokens > 0) {
    config.max_logit_rows = std::max(
        config.max_logit_rows, std::min(config.max_step_tokens, options.rollout.graph_max_batch));
  }
  // Without a trainer beside it: what is served, and a shadow.
  const SharedGpu gpu = options.shared_gpu
                            ? *options.shared_gpu
                            : SharedGpu{ops::free_cuda_bytes(), 0, options.in_place ? 1 : 2};
  const auto [weights, memory] = memory_of(
      spec, config, gpu.weight_buffers * make_manifest(spec.table, options.plan).bytes, draft);
  const int64_t own_part = gpu.free_bytes / options.gpu_sharers;
  const auto budget =
      static_cast<int64_t>(options.rollout.memory_fraction * static_cast<double>(own_part));
  const int64_t left = budget - gpu.trainer_bytes - weights - memory.fixed_bytes;
  const bool is_fixed = options.rollout.kv_tokens > 0;
  const int64_t fitting = std::max<int64_t>(0, left / memory.bytes_per_slot);
  if (is_fixed && options.rollout.kv_tokens > fitting) {
    fail(
        ErrorCode::kResourceExhausted,
        "rollout.kv_tokens = {} take {} MiB, but beside {} MiB for weights, {} MiB for buffers and "
        "{} MiB of the trainer, {} tokens fit into the {} MiB that rollout.memory_fraction = {} "
        "allows: lower kv_tokens (0: what is left), or raise memory_fraction",
        options.rollout.kv_tokens, options.rollout.kv_tokens * memory.bytes_per_slot >> 20,
        weights >> 20, memory.fixed_bytes >> 20, gpu.trainer_bytes >> 20, fitting, budget >> 20,
        options.rollout.memory_fraction);
  }
  if (!is_fixed) {
    config.kv_slots = std::min(fitting, config.max_running * options.rollout.max_positions);
  }
  if (config.kv_slots < options.rollout.max_positions) {
    fail(
        ErrorCode::kResourceExhausted,
        "the engine needs {} MiB for weights and {} MiB for buffers, the trainer beside it {} MiB; "
        "of the {} MiB that rollout.memory_fraction = {} allows, {} tokens of cache are left, less "
        "than rollout.max_positions = {}: raise memory_fraction, or lower max_step_tokens or "
        "max_positions",
        weights >> 20, memory.fixed_bytes >> 20, gpu.trainer_bytes >> 20, budget >> 20,
        options.rollout.memory_fraction, std::max<int64_t>(0, config.kv_slots),
        options.rollout.max_positions);
  }
  get_logger("engine")->info(
      "memory plan: trainer_mib={} weights_mib={} buffers_mib={} kv_tokens={} kv_mib={}{}",
      gpu.trainer_bytes >> 20, weights >> 20, memory.fixed_bytes >> 20, config.kv_slots,
      config.kv_slots * memory.bytes_per_slot >> 20,
      draft == nullptr ? "" : ", a draft model included");
  return config;
}

std::unique_ptr<Engine> make_cpu_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                        const DraftModel* draft, const DraftHead* head,
                                        HeadExamples* examples) {
  if (options.rollout.kv_tokens == 0) {
    fail(ErrorCode::kInvalidArgument,
         "rollout.kv_tokens: 0 means what GPU memory is left; on a CPU name a number of tokens");
  }
  const EngineConfig config = engine_config(options.rollout);
  const kernels::Parallel& parallel = ops::torch_parallel();
  if (draft == nullptr && head == nullptr) return std::make_unique<Engine>(spec, config, parallel);
  std::unique_ptr<WeightedDrafter> guesser;
  if (draft != nullptr) {
    guesser = make_cpu_drafter(draft->spec, config, parallel, ActivationType::kFloat32);
  } else {
    guesser = std::make_unique<HeadDrafter>(
        head->spec, spec, config,
        [&](const ModelSpec& own_spec, const EngineConfig& own) {
          return make_cpu_step_runner(own_spec, own, parallel);
        },
        HeadDrafter::Options{.examples = examples});
  }
  return std::make_unique<Engine>(spec, config, parallel, ActivationType::kFloat32,
                                  std::make_unique<LookupDrafter>(), std::move(guesser));
}

std::unique_ptr<Engine> make_gpu_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                        DraftModel* draft) {
  ops::bind_cuda_thread();
  const RolloutConfig& rollout = options.rollout;
  const EngineConfig config = gpu_engine_config(options, spec, draft);
  // A step has a token of each sequence, and guesses.
  const int64_t most = rollout.max_draft_tokens > 0 ? rollout.max_step_tokens : rollout.max_running;
  const StepRunnerFactory runner = cuda_step_runner(
      *options.gpu,
      {options.numerics, default_graph_batches(std::min(rollout.graph_max_batch, most))});
  if (draft == nullptr) return std::make_unique<Engine>(spec, config, runner);
  draft->weights = draft->weights->to(DeviceKind::kCuda);
  return std::make_unique<Engine>(spec, config, runner, std::make_unique<LookupDrafter>(),
                                  make_cuda_drafter(draft->spec, config, *options.gpu));
}

std::shared_ptr<const DraftHead> load_head(const RolloutWorkerOptions& options,
                                           const ModelSpec& spec) {
  if (options.rollout.draft_head.empty()) return nullptr;
  if (options.gpu != nullptr) {
    fail(ErrorCode::kUnimplemented,
         "rollout.draft_head: heads of training jobs guess on CPUs; remove it, or use "
         "rollout.draft_model");
  }
  return load_draft_head("rollout.draft_head", options.rollout.draft_head, spec);
}

std::unique_ptr<HeadCoach> make_coach(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                      const std::shared_ptr<const DraftHead>& head) {
  if (!options.rollout.train_draft_head || head == nullptr) return nullptr;
  return std::make_unique<HeadCoach>(head, spec, HeadCoach::Options());
}

std::unique_ptr<Engine> make_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                    const std::shared_ptr<const DraftHead>& head,
                                    HeadCoach* coach) {
  const RolloutConfig& rollout = options.rollout;
  std::shared_ptr<DraftModel> draft;
  if (!rollout.draft_model.empty()) {
    draft = load_draft_model("rollout.draft_model", rollout.draft_model, options.model);
  }
  std::unique_ptr<Engine> engine = options.gpu == nullptr
                                       ? make_cpu_engine(options, spec, draft.get(), head.get(),
                                                         coach ? &coach->examples() : nullptr)
                                       : make_gpu_engine(options, spec, draft.get());
  if (draft) engine->set_draft_weights(draft_weights(std::move(draft)), 1);
  if (head) engine->set_draft_weights(head_weights(head), 1);
  return engine;
}

std::string capped(std::string text) {
  if (text.size() <= kMaxReportText) return text;
  size_t end = kMaxReportText;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u) --end;
  text.resize(end);
  return text;
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
      spec_(spec_of(options_.model)),
      tokenizer_(Tokenizer::from_directory(options_.model)),
      encoder_(tokenizer_, options_.model.string()),
      head_(load_head(options_, spec_)),
      coach_(make_coach(options_, spec_, head_)),
      engine_(make_engine(options_, spec_, head_, coach_.get())) {
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
    groups[job.prompts[p].prompt_id] = {job.prompts[p].prompt_id, running.prompts[p], {}};
  }
  for (const SampleReport& report : outcome.samples) {
    if (!report.error) groups[report.prompt_id].samples.push_back(report.sample);
  }
  for (const auto& [id, group] : groups) {
    auto tokens = static_cast<int64_t>(group.prompt.size());
    for (const Sample& sample : group.samples) {
      tokens += std::max<int64_t>(0, static_cast<int64_t>(sample.response.size()) - 1);
    }
    outcome.computed_tokens[id] = tokens;
  }
  const std::lock_guard lock(mutex_);
  for (auto& [id, group] : groups) kept_[job.step][id] = std::move(group);
  while (kept_.size() > kKeptSteps) kept_.erase(kept_.begin());
}

std::vector<SampleGroup> RolloutWorker::fetch(int64_t step,
                                              const std::vector<uint64_t>& prompt_ids) const {
  const std::lock_guard lock(mutex_);
  const auto found = kept_.find(step);
  if (found == kept_.end()) {
    fail(ErrorCode::kNotFound, "no samples of step {} are kept here", step);
  }
  std::vector<SampleGroup> groups;
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
