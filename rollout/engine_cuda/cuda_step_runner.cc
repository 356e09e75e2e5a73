#include "rollout/engine_cuda/cuda_step_runner.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/cuda/event.h"
#include "core/cuda/stream.h"
#include "core/kernels_cuda/elementwise.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/log_softmax.h"
#include "core/kernels_cuda/rank_parts.h"
#include "core/models_cuda/cuda_arena.h"
#include "core/quant/bf16.h"
#include "rollout/engine/slot_changes.h"

namespace nibble {
namespace {

using kernels::cuda::DrawResult;
using kernels::cuda::DrawSpec;

// An array that is filled on the host and read on the GPU.
template <typename T>
class Staged {
 public:
  explicit Staged(int64_t count)
      : host_(count), device_(static_cast<size_t>(count), DeviceKind::kCuda) {}
  T* host() { return host_.data(); }
  const T* device() const { return device_.data(); }
  void upload(int64_t count, cudaStream_t stream) {
    NIBBLE_CUDA_CHECK(cudaMemcpyAsync(device_.data(), host_.data(),
                                      static_cast<size_t>(count) * sizeof(T),
                                      cudaMemcpyHostToDevice, stream));
  }

 private:
  PinnedBuffer<T> host_;
  Array<T> device_;
};

class CudaStepRunner final : public StepRunner {
 public:
  CudaStepRunner(const ModelSpec& spec, const EngineConfig& config, const ops::Backend& backend,
                 const CudaEngineOptions& options)
      : spec_(spec),
        config_(config),
        options_(options),
        arena_(spec, {config.max_step_tokens, config.max_positions}, backend, options.numerics,
               options.ranks),
        cache_(rank_config(spec.config, options.ranks.mesh()), config.kv_slots),
        tokens_(config.max_step_tokens),
        position_(config.max_step_tokens),
        slot_(config.max_step_tokens),
        first_(config.max_step_tokens),
        count_(config.max_step_tokens),
        joined_(spec.table.join.exists() ? config.max_step_tokens * spec.config.hidden : 1),
        draws_(most_draws()),
        draw_rows_(config.max_logit_rows),
        table_(static_cast<size_t>(table_entries()), DeviceKind::kCuda),
        table_changes_(table_entries()),
        change_index_(kMaxChanges),
        change_value_(kMaxChanges),
        hidden_(static_cast<size_t>(config.max_logit_rows * spec.config.hidden), DeviceKind::kCuda),
        logits_(static_cast<size_t>(config.max_logit_rows * spec.config.vocab), DeviceKind::kCuda),
        logit_part_(static_cast<size_t>(part_values(spec, config, options.ranks.world())),
                    DeviceKind::kCuda),
        logit_parts_(logit_part_.size() * static_cast<size_t>(options.ranks.world()),
                     DeviceKind::kCuda),
        results_(static_cast<size_t>(most_draws()), DeviceKind::kCuda),
        results_on_host_(most_draws()),
        routes_on_host_(std::max<int64_t>(
            1, spec.config.num_moe_layers() * config.max_step_tokens * spec.config.moe.top_k)),
        log_(get_logger("engine")) {
    // Construction used the thread's current stream; steps use one of their own.
    NIBBLE_CUDA_CHECK(cudaDeviceSynchronize());
  }
  ~CudaStepRunner() override { (void)cudaStreamSynchronize(stream_.get()); }

  void set_weights(const ops::WeightSource& weights, int64_t /*version*/) override {
    // Whoever filled the weights has waited for them; the last step has been waited for.
    arena_.set_weights(weights, stream_.get());
    if (!captured_) capture();
    wait();
  }

  void run(StepPlan& plan, const int32_t* slot_table) override {
    const c10::cuda::CUDAStreamGuard guard(torch_stream());
    const int64_t tokens = plan.num_tokens();
    update_table(plan, slot_table);
    const bool decodes = static_cast<int64_t>(plan.draws.size()) == tokens && is_decode(plan);
    const auto graph = decodes ? graphs_.lower_bound(tokens) : graphs_.end();
    if (decodes && graph == graphs_.end()) warn_uncovered(tokens);
    const int64_t padded = graph == graphs_.end() ? tokens : graph->first;
    stage(plan, padded);
    if (graph != graphs_.end()) {
      stage_draws(std::span(plan.draws));
      for (int64_t i = tokens; i < padded; ++i) draws_.host()[i] = {static_cast<int32_t>(i)};
      draws_.upload(padded, stream_.get());
      graph->second.graph.launch(stream_.get());
      fetch(tokens);
      fetch_hidden(plan, graph->second.hidden);
    } else {
      const uint16_t* hidden = arena_.run(device_step(tokens), cache_, stream_.get());
      draw(plan, hidden);
      fetch_hidden(plan, hidden);
    }
    fetch_routes(tokens);
    wait();
    if (graph != graphs_.end()) take_results(std::span(plan.draws));
    num_tokens_ = tokens;
  }

  std::span<const int32_t> routes(int64_t moe_layer) const override {
    const int64_t top_k = spec_.config.moe.top_k;
    return {routes_on_host_.data() + moe_layer * config_.max_step_tokens * top_k,
            static_cast<size_t>(num_tokens_ * top_k)};
  }

 private:
  struct Captured {
    CudaGraph graph;
    const uint16_t* hidden;  // where it leaves the final hidden states
  };
  static constexpr int64_t kMaxChanges = 1 << 16;
  static constexpr std::chrono::seconds kStepTimeout{120};
  static constexpr std::chrono::milliseconds kSpin{20};
  static constexpr std::chrono::microseconds kPoll{50};

  // Of the logits that one of several ranks computes.
  static int64_t part_values(const ModelSpec& spec, const EngineConfig& config, int world) {
    if (world == 1) return 0;
    return config.max_logit_rows * head_share(spec.config.vocab, 0, world).rows();
  }

  // Until the GPU is done; a step that waits for other ranks does not for ever.
  void wait() const {
    ProcessGroup* const group = options_.ranks.group;
    if (group == nullptr) return stream_.synchronize();
    done_.record(stream_.get());
    const Deadline deadline = Deadline::after(kStepTimeout);
    const Deadline patience = Deadline::after(kSpin);
    while (!done_.is_reached()) {
      group->check();
      if (deadline.expired()) {
        group->abort();
        fail(ErrorCode::kDeadlineExceeded, "group '{}': a step did not end in {} s", group->name(),
             kStepTimeout.count());
      }
      if (patience.expired()) std::this_thread::sleep_for(kPoll);
    }
    group->check();
  }

  int64_t table_entries() const { return config_.max_running * config_.max_positions; }
  // At a time. A step may draw more, many tokens from one row: the first of each sample of a group.
  int64_t most_draws() const { return std::max(config_.max_running, config_.max_step_tokens); }

  static bool is_decode(const StepPlan& plan) {
    for (size_t i = 0; i < plan.draws.size(); ++i) {
      if (plan.draws[i].row != static_cast<int64_t>(i)) return false;
    }
    return true;
  }

  // Our stream as torch's current one, for what goes through torch.
  c10::cuda::CUDAStream torch_stream() const {
    return c10::cuda::getStreamFromExternal(stream_.get(), c10::cuda::current_device());
  }

  CudaStep device_step(int64_t tokens) const {
    return {tokens,
            tokens_.device(),
            position_.device(),
            slot_.device(),
            {table_.data(), first_.device(), count_.device()},
            spec_.table.join.exists() ? joined_.device() : nullptr};
  }

  void stage(const StepPlan& plan, int64_t padded) {
    const int64_t tokens = plan.num_tokens();
    std::copy(plan.tokens.begin(), plan.tokens.end(), tokens_.host());
    std::copy(plan.position.begin(), plan.position.end(), position_.host());
    std::copy(plan.slot.begin(), plan.slot.end(), slot_.host());
    std::copy(plan.first.begin(), plan.first.end(), first_.host());
    std::copy(plan.count.begin(), plan.count.end(), count_.host());
    for (int64_t i = tokens; i < padded; ++i) {
      tokens_.host()[i] = position_.host()[i] = count_.host()[i] = 0;
      slot_.host()[i] = -1;
      first_.host()[i] = 0;
    }
    const cudaStream_t stream = stream_.get();
    tokens_.upload(padded, stream);
    position_.upload(padded, stream);
    slot_.upload(padded, stream);
    first_.upload(padded, stream);
    count_.upload(padded, stream);
    if (!spec_.table.join.exists()) return;
    const int64_t width = spec_.config.hidden;
    std::transform(plan.joined.begin(), plan.joined.end(), joined_.host(), quant::float_to_bf16);
    std::fill(joined_.host() + tokens * width, joined_.host() + padded * width, uint16_t{0});
    joined_.upload(padded * width, stream);
  }

  // Brings the GPU's slot table up to date for the keys that this step reads.
  void update_table(const StepPlan& plan, const int32_t* slot_table) {
    int64_t changes = 0;
    const auto flush = [&] {
      change_index_.upload(changes, stream_.get());
      change_value_.upload(changes, stream_.get());
      kernels::cuda::scatter_values(change_index_.device(), change_value_.device(), changes,
                                    table_.data(), stream_.get());
      stream_.synchronize();  // the staging memory is used again
      changes = 0;
    };
    table_changes_.visit(plan, slot_table, [&](int64_t index, int32_t slot) {
      change_index_.host()[changes] = index;
      change_value_.host()[changes] = slot;
      if (++changes == kMaxChanges) flush();
    });
    if (changes > 0) flush();
  }

  void stage_draws(std::span<const Draw> draws) {
    NIBBLE_CHECK(std::ssize(draws) <= most_draws(), "{} draws at a time", draws.size());
    for (size_t i = 0; i < draws.size(); ++i) {
      const Draw& draw = draws[i];
      draws_.host()[i] = {static_cast<int32_t>(draw.row),
                          draw.sampling.temperature,
                          draw.sampling.top_k,
                          draw.sampling.top_p,
                          draw.uniform,
                          draw.given};
    }
  }

  // Of draws that were staged and fetched.
  void take_results(std::span<Draw> draws) {
    for (size_t i = 0; i < draws.size(); ++i) {
      draws[i].token = results_on_host_.data()[i].token;
      draws[i].log_prob = results_on_host_.data()[i].log_prob;
      complete(draws[i], draws_.host()[i].row);
    }
  }

  // Head and draws of a step that is no captured one, as many at a time as there is room for: of
  // distinct rows among the logits, and of draws.
  void draw(StepPlan& plan, const uint16_t* hidden) {
    std::span<Draw> left(plan.draws);
    while (!left.empty()) {
      int64_t rows = 0;
      size_t count = 0;
      for (; count < left.size() && static_cast<int64_t>(count) < most_draws(); ++count) {
        const auto row = static_cast<int32_t>(left[count].row);
        if (rows == 0 || draw_rows_.host()[rows - 1] != row) {
          if (rows == config_.max_logit_rows) break;
          draw_rows_.host()[rows++] = row;
        }
      }
      const std::span<Draw> now = left.first(count);
      stage_draws(now);
      int32_t at = 0;
      for (size_t i = 0; i < count; ++i) {
        while (draw_rows_.host()[at] != draws_.host()[i].row) ++at;
        draws_.host()[i].row = at;
      }
      const cudaStream_t stream = stream_.get();
      draw_rows_.upload(rows, stream);
      draws_.upload(std::ssize(now), stream);
      kernels::cuda::gather_rows(hidden, draw_rows_.device(), rows, spec_.config.hidden,
                                 hidden_.data(), stream);
      enqueue_draws(hidden_.data(), rows, std::ssize(now));
      fetch(std::ssize(now));
      wait();  // the staging memory is used again
      take_results(now);
      left = left.subspan(count);
    }
  }

  void compute_logits(const uint16_t* hidden, int64_t rows) {
    ProcessGroup* const group = options_.ranks.group;
    float* const own = group == nullptr ? logits_.data() : logit_part_.data();
    kernels::cuda::linear(hidden, arena_.head(), rows, own, stream_.get());
    if (group == nullptr) return;
    const int64_t share = head_share(spec_.config.vocab, 0, group->world()).rows();
    const auto count = static_cast<size_t>(rows * share);
    const auto all = count * static_cast<size_t>(group->world());
    group
        ->all_gather(std::as_bytes(std::span<const float>(own, count)),
                     std::as_writable_bytes(std::span(logit_parts_.data(), all)))
        ->join();
    kernels::cuda::join_logits(logit_parts_.data(), rows, share, spec_.config.vocab, logits_.data(),
                               stream_.get());
  }

  void enqueue_draws(const uint16_t* hidden, int64_t rows, int64_t count) {
    compute_logits(hidden, rows);
    kernels::cuda::sample(logits_.data(), spec_.config.vocab, draws_.device(), count,
                          results_.data(), stream_.get());
  }

  void fetch(int64_t count) {
    NIBBLE_CUDA_CHECK(cudaMemcpyAsync(results_on_host_.data(), results_.data(),
                                      static_cast<size_t>(count) * sizeof(DrawResult),
                                      cudaMemcpyDeviceToHost, stream_.get()));
  }

  // What few draws ask for is computed on the host.
  void complete(Draw& draw, int64_t logit_row) {
    if (!draw.wants_more()) return;
    const int64_t vocab = spec_.config.vocab;
    std::vector<float> logits(static_cast<size_t>(vocab));
    NIBBLE_CUDA_CHECK(cudaMemcpy(logits.data(), logits_.data() + logit_row * vocab,
                                 logits.size() * sizeof(float), cudaMemcpyDeviceToHost));
    complete_draw(logits.data(), vocab, draw);
  }

  // Final hidden states of the rows that are wanted, which lie where the step left them. After all
  // draws: staging memory is shared with theirs.
  void fetch_hidden(StepPlan& plan, const uint16_t* hidden) {
    const int64_t width = spec_.config.hidden;
    const auto count = std::ssize(plan.hidden_rows);
    plan.hidden.resize(static_cast<size_t>(count * width));
    for (int64_t begin = 0; begin < count;) {
      const int64_t rows = std::min(count - begin, config_.max_logit_rows);
      if (hidden_on_host_ == nullptr) {
        hidden_on_host_ = std::make_unique<PinnedBuffer<uint16_t>>(config_.max_logit_rows * width);
      }
      wait();  // the staging memory is used again
      std::copy_n(plan.hidden_rows.begin() + begin, rows, draw_rows_.host());
      const cudaStream_t stream = stream_.get();
      draw_rows_.upload(rows, stream);
      kernels::cuda::gather_rows(hidden, draw_rows_.device(), rows, width, hidden_.data(), stream);
      NIBBLE_CUDA_CHECK(cudaMemcpyAsync(hidden_on_host_->data(), hidden_.data(),
                                        static_cast<size_t>(rows * width) * sizeof(uint16_t),
                                        cudaMemcpyDeviceToHost, stream));
      wait();
      std::transform(hidden_on_host_->data(), hidden_on_host_->data() + rows * width,
                     plan.hidden.begin() + begin * width, quant::bf16_to_float);
      begin += rows;
    }
  }

  void fetch_routes(int64_t tokens) {
    const int64_t top_k = spec_.config.moe.top_k;
    for (int64_t layer = 0; layer < spec_.config.num_moe_layers(); ++layer) {
      NIBBLE_CUDA_CHECK(cudaMemcpyAsync(
          routes_on_host_.data() + layer * config_.max_step_tokens * top_k, arena_.routes(layer),
          static_cast<size_t>(tokens * top_k) * sizeof(int32_t), cudaMemcpyDeviceToHost,
          stream_.get()));
    }
  }

  void capture() {
    captured_ = true;
    const c10::cuda::CUDAStreamGuard guard(torch_stream());
    const int64_t most = std::min(config_.max_step_tokens, config_.max_logit_rows);
    stage(StepPlan(), config_.max_step_tokens);
    for (int64_t i = 0; i < most; ++i) draws_.host()[i] = {static_cast<int32_t>(i)};
    draws_.upload(most, stream_.get());
    for (const int64_t batch : options_.graph_batches) {
      if (batch < 1 || batch > most) continue;
      const uint16_t* hidden = nullptr;
      const auto enqueue = [&] {
        hidden = arena_.run(device_step(batch), cache_, stream_.get());
        enqueue_draws(hidden, batch, batch);
      };
      enqueue();  // once outside: kernels are loaded when they first run
      wait();
      CudaGraph graph(stream_.get(), enqueue);
      graphs_.emplace(batch, Captured{std::move(graph), hidden});
    }
    if (!graphs_.empty()) {
      log_->info("captured {} decode graphs, up to a batch of {}", graphs_.size(),
                 graphs_.rbegin()->first);
    }
  }

  // What keeps a batch without a graph, and what to change.
  std::string uncovered_fix(int64_t tokens) const {
    const int64_t most = std::min(config_.max_step_tokens, config_.max_logit_rows);
    if (tokens <= most) {
      return fmt::format("raise rollout.graph_max_batch to {}, or lower rollout.max_running",
                         tokens);
    }
    return fmt::format(
        "steps take {} tokens and {} rows of logits: raise rollout.max_step_tokens to {}, or lower "
        "rollout.max_running",
        config_.max_step_tokens, config_.max_logit_rows, tokens);
  }

  void warn_uncovered(int64_t tokens) {
    if (warned_ || options_.graph_batches.empty()) return;
    warned_ = true;
    log_->warn("a batch of {} sequences has no CUDA graph (largest: {}) and decodes slower; {}",
               tokens, graphs_.empty() ? 0 : graphs_.rbegin()->first, uncovered_fix(tokens));
  }

  const ModelSpec& spec_;
  const EngineConfig config_;
  const CudaEngineOptions options_;
  const CudaStream stream_;
  const CudaEvent done_;
  CudaArena arena_;
  CudaKvCache cache_;
  Staged<int32_t> tokens_, position_, slot_;
  Staged<int64_t> first_;
  Staged<int32_t> count_;
  Staged<uint16_t> joined_;  // BF16 [max_step_tokens, hidden], of a draft head
  Staged<DrawSpec> draws_;
  Staged<int32_t> draw_rows_;
  Array<int32_t> table_;
  SlotChanges table_changes_;  // of table_
  Staged<int64_t> change_index_;
  Staged<int32_t> change_value_;
  Array<uint16_t> hidden_;    // [max_logit_rows, hidden]
  Array<float> logits_;       // [max_logit_rows, vocab]
  Array<float> logit_part_;   // of one of several ranks
  Array<float> logit_parts_;  // of all of them
  Array<DrawResult> results_;
  PinnedBuffer<DrawResult> results_on_host_;
  PinnedBuffer<int32_t> routes_on_host_;                    // [moe layers, max_step_tokens * k]
  std::unique_ptr<PinnedBuffer<uint16_t>> hidden_on_host_;  // null: none were wanted yet
  std::map<int64_t, Captured> graphs_;                      // by batch
  bool captured_ = false;
  bool warned_ = false;
  int64_t num_tokens_ = 0;  // of the last step
  const Logger log_;
};

}  // namespace

RunnerMemory cuda_engine_memory(const ModelSpec& spec, const EngineConfig& config) {
  // Of several ranks each has a part of the logits, everybody's parts and the whole.
  const int64_t world = config.mesh.world;
  const int64_t parts =
      world == 1 ? 0 : (world + 1) * head_share(spec.config.vocab, 0, config.mesh.world).rows() * 4;
  const int64_t logits =
      config.max_logit_rows * (spec.config.vocab * 4 + parts + spec.config.hidden * 2);
  const int64_t table = config.max_running * config.max_positions * 4;
  const int64_t joined =
      spec.table.join.exists() ? config.max_step_tokens * spec.config.hidden * 2 : 0;
  return {CudaArena::num_bytes(spec, {config.max_step_tokens, config.max_positions}, config.mesh) +
              logits + table + joined,
          CudaKvCache::bytes_per_slot(rank_config(spec.config, config.mesh))};
}

StepRunnerFactory cuda_step_runner(const ops::Backend& backend, CudaEngineOptions options) {
  return
      [&backend, options = std::move(options)](const ModelSpec& spec, const EngineConfig& config) {
        return std::make_unique<CudaStepRunner>(spec, config, backend, options);
      };
}

}  // namespace nibble
