// First figures of real shapes on one GPU, with random weights made there: decode against the
// memory bound, prompts and a training pass against the arithmetic one, packing. Checks first that
// a sequence gives the same bits alone and in a batch (`exact`). One JSON line a figure.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <random>

#include "benchmarks/model_shapes.h"
#include "core/base/fail.h"
#include "core/cuda/check.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/models/weights.h"
#include "core/quant/bf16.h"
#include "rollout/engine/engine.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  NIBBLE_CUDA_CHECK(cudaDeviceSynchronize());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// What this GPU reaches: bytes read and written by a copy, bf16 products.
struct Limits {
  double bytes_per_s = 0.0;
  double flops = 0.0;
};
Limits measure_limits() {
  const auto gpu = at::TensorOptions().device(at::kCUDA, at::cuda::current_device());
  const at::Tensor from = at::randn({int64_t{1} << 28}, gpu.dtype(at::kFloat));
  at::Tensor to = from.clone();
  const at::Tensor a = at::randn({8192, 8192}, gpu.dtype(at::kBFloat16));
  at::Tensor b = a.clone();
  Limits limits;
  for (int round = 0; round < 5; ++round) {
    (void)seconds_since({});
    auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 5; ++i) to.copy_(from);
    limits.bytes_per_s = std::max(limits.bytes_per_s, 10.0 * 4 * (1 << 28) / seconds_since(begin));
    begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 5; ++i) at::mm_out(b, a, a);
    limits.flops = std::max(limits.flops, 5 * 2.0 * std::pow(8192.0, 3) / seconds_since(begin));
  }
  return limits;
}

struct Setup {
  std::string name;
  std::string weights_name;  // int4 or bf16
  ModelSpec spec;
  std::shared_ptr<ResidentWeights> weights;
  Limits limits;
  // Parameters that a token multiplies with, the head included.
  double active_parameters() const {
    double count = 0.0;
    const MoeConfig& moe = spec.config.moe;
    for (int64_t p = 0; p < spec.table.size(); ++p) {
      const ParameterSpec& parameter = spec.table.at(p);
      if (parameter.is_vector() || (p == spec.table.embedding && !spec.config.tied_embeddings)) {
        continue;
      }
      const bool expert = parameter.module.find(".experts.") != std::string::npos;
      count += static_cast<double>(parameter.num_elements()) *
               (expert ? static_cast<double>(moe.top_k) / static_cast<double>(moe.num_experts) : 1);
    }
    return count;
  }
  // Bytes a decoding step reads: weights of all layers and the head (of a MoE layer the experts
  // that `batch` tokens of uniform routing reach), and keys and values.
  double step_bytes(int64_t batch, int64_t context) const {
    const MoeConfig& moe = spec.config.moe;
    const double reached = moe.num_experts == 0
                               ? 1.0
                               : 1.0 - std::pow(1.0 - static_cast<double>(moe.top_k) /
                                                          static_cast<double>(moe.num_experts),
                                                static_cast<double>(batch));
    double bytes = 0.0;
    for (int64_t p = 0; p < spec.table.size(); ++p) {
      if (p == spec.table.embedding && !spec.config.tied_embeddings) continue;
      const StoredParameter& s = weights->stored(p);
      const bool expert = spec.table.at(p).module.find(".experts.") != std::string::npos;
      bytes += static_cast<double>(s.words.num_bytes() + s.scale.num_bytes() + s.bf16.num_bytes()) *
               (expert ? reached : 1.0);
    }
    return bytes + static_cast<double>(batch * context * 4 * spec.config.num_layers *
                                       spec.config.kv_rows());
  }
};

void print(const Setup& s, const std::string& what, const std::string& figures) {
  fmt::print("{{\"bench\": \"{}\", \"model\": \"{}\", \"weights\": \"{}\", {}}}\n", what, s.name,
             s.weights_name, figures);
  std::fflush(stdout);
}

std::vector<GenerateRequest> requests(const ModelSpec& spec, int64_t count, int64_t prompt,
                                      int64_t fresh) {
  std::vector<GenerateRequest> out;
  for (int64_t i = 0; i < count; ++i) {
    GenerateRequest request;
    request.id = request.prompt_id = static_cast<uint64_t>(i);
    std::mt19937 random(static_cast<unsigned>(i));
    for (int64_t t = 0; t < prompt; ++t) {
      request.prompt.push_back(
          static_cast<int32_t>(random() % static_cast<unsigned>(spec.config.vocab)));
    }
    request.max_new_tokens = fresh;
    request.seed = 1;
    out.push_back(std::move(request));
  }
  return out;
}

std::unique_ptr<Engine> make_engine(const Setup& s, const ops::Backend& backend, Numerics numerics,
                                    int64_t batch, int64_t positions) {
  EngineConfig config;
  config.max_running = batch;
  config.max_step_tokens = 4096;
  config.max_positions = positions;
  config.kv_slots = batch * positions;
  config.max_logit_rows = std::max<int64_t>(64, batch);
  auto engine = std::make_unique<Engine>(
      s.spec, config, cuda_step_runner(backend, {numerics, default_graph_batches(batch)}));
  engine->set_weights(s.weights, 1);
  return engine;
}

void check(const Setup& s, const ops::Backend& backend) {
  const auto together = make_engine(s, backend, Numerics::kExact, 5, 32);
  NIBBLE_CHECK(together->submit(requests(s.spec, 5, 9, 6)) == SubmitOutcome::kAccepted, "queue");
  while (together->has_work()) together->step();
  const auto many = together->take_finished();
  for (const Completion& one : many) {
    const auto alone = make_engine(s, backend, Numerics::kExact, 1, 32);
    auto all = requests(s.spec, 5, 9, 6);
    std::vector<GenerateRequest> single;
    single.push_back(std::move(all[one.id]));
    NIBBLE_CHECK(alone->submit(std::move(single)) == SubmitOutcome::kAccepted, "queue");
    while (alone->has_work()) alone->step();
    const Completion got = alone->take_finished().at(0);
    if (got.tokens == one.tokens && got.log_probs == one.log_probs) continue;
    fail(ErrorCode::kInternal, "request {} differs in a batch from what it is alone", one.id);
  }
}

void measure_engine(const Setup& s, const ops::Backend& backend, Numerics numerics) {
  constexpr int64_t kPrompt = 512, kNew = 65;
  for (const int64_t batch : {1, 8, 16, 24, 32, 64, 128, 256}) {
    const auto engine = make_engine(s, backend, numerics, batch, kPrompt + kNew);
    NIBBLE_CHECK(engine->submit(requests(s.spec, batch, kPrompt, kNew)) == SubmitOutcome::kAccepted,
                 "queue");
    double prefill_s = 0.0;
    std::vector<double> steps;
    while (engine->has_work()) {
      const auto begin = std::chrono::steady_clock::now();
      const int64_t tokens = engine->step();
      const double seconds = seconds_since(begin);
      if (tokens <= batch && prefill_s > 0.0) {
        steps.push_back(seconds);
      } else {
        prefill_s += seconds;
      }
    }
    std::sort(steps.begin(), steps.end());
    const double step = steps[steps.size() / 2];
    const double bytes = s.step_bytes(batch, kPrompt + kNew / 2);
    const double flop = 2.0 * static_cast<double>(batch) * s.active_parameters();
    const double bound = std::max(bytes / s.limits.bytes_per_s, flop / s.limits.flops);
    const auto prompt_tokens = static_cast<double>(batch * kPrompt);
    print(
        s, "decode",
        fmt::format(
            "\"numerics\": \"{}\", \"batch\": {}, \"context\": {}, \"ms_per_step\": {:.3f}, "
            "\"tokens_per_s\": {:.0f}, \"bound_ms\": {:.3f}, \"of_bound\": {:.3f}, "
            "\"prefill_tokens_per_s\": {:.0f}, \"prefill_of_peak\": {:.3f}",
            numerics == Numerics::kExact ? "exact" : "fast", batch, kPrompt + kNew / 2, 1e3 * step,
            static_cast<double>(batch) / step, 1e3 * bound, bound / step, prompt_tokens / prefill_s,
            prompt_tokens / prefill_s * 2.0 * s.active_parameters() / s.limits.flops));
  }
}

void measure_training(const Setup& s, const ops::Backend& backend, Numerics numerics) {
  constexpr int64_t kTokens = 4096, kSequence = 1024;
  std::vector<SequenceGroup> groups;
  std::mt19937 random(1);
  for (int64_t g = 0; g < kTokens / kSequence; ++g) {
    SequenceGroup group;
    for (int64_t t = 0; t < kSequence; ++t) {
      const auto id = static_cast<int32_t>(random() % static_cast<unsigned>(s.spec.config.vocab));
      if (t < 256) {
        group.prompt.push_back(id);
      } else {
        if (t == 256) group.responses.emplace_back();
        group.responses[0].push_back(id);
      }
    }
    groups.push_back(std::move(group));
  }
  const PackedBatch batch = pack_groups(groups);
  const auto rope =
      backend.place(make_rope_table(s.spec.config.rope, s.spec.config.head_dim, kSequence));
  std::vector<double> forward, both;
  for (int round = 0; round < 6; ++round) {
    (void)seconds_since({});
    const auto begin = std::chrono::steady_clock::now();
    const TapeResult result = run_log_probs(s.spec, *s.weights, rope, {batch, {}, &backend}, 1.0f,
                                            ActivationType::kFloat32);
    forward.push_back(seconds_since(begin));
    result.log_prob.backward(at::ones_like(result.log_prob));
    both.push_back(seconds_since(begin));
  }
  std::sort(forward.begin(), forward.end());
  std::sort(both.begin(), both.end());
  const auto tokens = static_cast<double>(batch.tokens.size());
  const double flop = 6.0 * tokens * s.active_parameters();
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(
      static_cast<c10::DeviceIndex>(at::cuda::current_device()));
  print(s, "forward_backward",
        fmt::format("\"numerics\": \"{}\", \"tokens\": {}, \"forward_ms\": {:.1f}, \"ms\": {:.1f}, "
                    "\"tokens_per_s\": {:.0f}, \"mfu\": {:.3f}, \"peak_mib\": {}",
                    numerics == Numerics::kExact ? "exact" : "fast", batch.tokens.size(),
                    1e3 * forward[2], 1e3 * both[2], tokens / both[2],
                    flop / both[2] / s.limits.flops, stats.allocated_bytes[0].peak >> 20));
}

// Bytes per second from page-locked host memory to the GPU.
double bus_rate() {
  constexpr size_t kBytes = size_t{1} << 30;
  const Array<std::byte> host(kBytes, DeviceKind::kCudaHost);
  Array<std::byte> gpu(kBytes, DeviceKind::kCuda);
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {
    (void)seconds_since({});
    const auto begin = std::chrono::steady_clock::now();
    device_memory(DeviceKind::kCuda).copy(gpu.data(), host.data(), host.num_bytes());
    best = std::min(best, seconds_since(begin));
  }
  return static_cast<double>(kBytes) / best;
}

// Float32 masters, moments (on the GPU or offloaded, by `state`) and gradients of all quantized
// parameters, and the work on them.
struct WeightWork {
  WeightWork(const Setup& s, DeviceKind state) {
    const auto gpu =
        at::TensorOptions().dtype(at::kFloat).device(at::kCUDA, at::cuda::current_device());
    for (int64_t p = 0; p < s.spec.table.size(); ++p) {
      if (s.weights->stored(p).words.empty()) continue;
      const ParameterSpec& parameter = s.spec.table.at(p);
      const auto elements = static_cast<size_t>(parameter.num_elements());
      for (auto* list : {&master, &grad}) list->emplace_back(elements, DeviceKind::kCuda);
      for (auto* list : {&m, &v}) list->emplace_back(elements, state);
      at::from_blob(master.back().data(), {parameter.num_elements()}, gpu).normal_(0.0, 0.02);
      at::from_blob(grad.back().data(), {parameter.num_elements()}, gpu).normal_(0.0, 0.01);
      if (state != DeviceKind::kCuda) master.back() = master.back().to(state);
      packed.push_back(StoredParameter::make(parameter, parameter.rows, s.weights->plan(), true,
                                             DeviceKind::kCuda));
      StoredParameter& out = packed.back();
      jobs.push_back({master.back().data(),
                      {parameter.rows, parameter.cols, s.weights->plan().config.group_size},
                      out.words.data(),
                      out.scale.data(),
                      nullptr});
      updates.push_back({master.back().data(), m.back().data(), v.back().data(), grad.back().data(),
                         parameter.num_elements(), 0.1f});
      count += static_cast<double>(elements);
      bytes += static_cast<double>(out.words.num_bytes() + out.scale.num_bytes());
    }
  }
  std::vector<Array<float>> master, m, v, grad;
  std::vector<StoredParameter> packed;
  std::vector<kernels::PackJob> jobs;
  std::vector<kernels::AdamwJob> updates;
  double bytes = 0.0, count = 0.0;  // packed; parameters
};

// Seconds, medians.
struct WeightTimes {
  double pack = 0.0, adamw = 0.0, both = 0.0;
};
WeightTimes time_weights(const WeightWork& work, const kernels::WeightKernels& kernels) {
  std::vector<double> pack, adamw, both;
  for (int round = 0; round < 9; ++round) {
    const kernels::AdamwParams params{1e-6f, 0.9f, 0.98f, 1e-8f, 0.1f, round + 1, 1.0f};
    auto begin = std::chrono::steady_clock::now();
    if (kernels.pack(work.jobs)) fail(ErrorCode::kInternal, "random masters cannot be packed");
    pack.push_back(seconds_since(begin));
    begin = std::chrono::steady_clock::now();
    kernels.adamw(work.updates, params);
    adamw.push_back(seconds_since(begin));
    begin = std::chrono::steady_clock::now();
    if (kernels.adamw_pack(work.updates, work.jobs, params).problem) {
      fail(ErrorCode::kInternal, "updated masters cannot be packed");
    }
    both.push_back(seconds_since(begin));
  }
  for (auto* times : {&pack, &adamw, &both}) std::sort(times->begin(), times->end());
  return {pack[4], adamw[4], both[4]};
}

// Quantize-and-pack and AdamW, apart and in one pass.
void measure_weights(const Setup& s, const ops::Backend& backend, DeviceKind state) {
  const WeightWork work(s, state);
  if (work.jobs.empty()) return;
  const WeightTimes t = time_weights(work, backend.weight_kernels());
  if (state == DeviceKind::kCudaHost) {
    // Each way: AdamW reads three arrays and writes them, packing reads one.
    const double bus = bus_rate();
    print(s, "offload",
          fmt::format("\"parameters\": {:.0f}, \"bus_GB_per_s\": {:.1f}, \"pack_ms\": {:.1f}, "
                      "\"pack_of_bus\": {:.3f}, \"adamw_ms\": {:.1f}, \"adamw_of_bus\": {:.3f}, "
                      "\"adamw_pack_ms\": {:.1f}",
                      work.count, 1e-9 * bus, 1e3 * t.pack, 4.0 * work.count / t.pack / bus,
                      1e3 * t.adamw, 12.0 * work.count / t.adamw / bus, 1e3 * t.both));
    return;
  }
  const double pack_rate = (4.0 * work.count + work.bytes) / t.pack;
  const double adamw_rate = 28.0 * work.count / t.adamw;  // four read, three written
  print(s, "pack",
        fmt::format("\"parameters\": {:.0f}, \"ms\": {:.3f}, \"GB_per_s\": {:.0f}, "
                    "\"of_copy\": {:.3f}, \"adamw_ms\": {:.3f}, \"adamw_of_copy\": {:.3f}, "
                    "\"adamw_pack_ms\": {:.3f}, \"adamw_pack_of_copy\": {:.3f}",
                    work.count, 1e3 * t.pack, 1e-9 * pack_rate, pack_rate / s.limits.bytes_per_s,
                    1e3 * t.adamw, adamw_rate / s.limits.bytes_per_s, 1e3 * t.both,
                    (28.0 * work.count + work.bytes) / t.both / s.limits.bytes_per_s));
}

// What to measure: "engine", "weights" or "training"; empty: all.
void measure(const std::string& name, const std::string& weights_name, const std::string& part) {
  const auto wants = [&part](const char* one) { return part.empty() || part == one; };
  Setup s{name, weights_name, make_model_spec(shape_of(name)), nullptr, measure_limits()};
  const bool moe = s.spec.config.num_moe_layers() > 0;
  const QuantizationPlan plan =
      weights_name == "bf16" ? plan_bf16(s.spec.table) : usual_plan(s.spec, 128);
  s.weights = random_weights(s.spec, plan, DeviceKind::kCuda);
  print(s, "limits",
        fmt::format("\"gpu\": \"{}\", \"copy_GB_per_s\": {:.0f}, \"bf16_TFLOP_per_s\": {:.0f}, "
                    "\"weights_mib\": {}",
                    at::cuda::getCurrentDeviceProperties()->name, 1e-9 * s.limits.bytes_per_s,
                    1e-12 * s.limits.flops, s.weights->num_bytes() >> 20));
  const auto exact = ops::make_cuda_backend(Numerics::kExact);
  const auto fast = ops::make_cuda_backend(Numerics::kFast);
  check(s, *exact);
  if (wants("engine")) {
    measure_engine(s, *fast, Numerics::kFast);
    measure_engine(s, *exact, Numerics::kExact);
  }
  if (moe) return;  // float32 gradients of 30 billion weights do not fit
  if (wants("weights")) {
    measure_weights(s, *fast, DeviceKind::kCuda);
    measure_weights(s, *fast, DeviceKind::kCudaHost);
  }
  if (!wants("training")) return;
  s.weights->enable_gradients();
  measure_training(s, *fast, Numerics::kFast);
  measure_training(s, *exact, Numerics::kExact);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  std::string model = "qwen3-0.6b", weights = "int4", part;
  CLI::App app("Rollout, training pass and packing of real shapes on one GPU");
  app.add_option("--model", model)->check(CLI::IsMember({"qwen3-0.6b", "qwen3-4b", "30b-a3b"}));
  app.add_option("--weights", weights)->check(CLI::IsMember({"int4", "bf16"}));
  app.add_option("--part", part)->check(CLI::IsMember({"engine", "weights", "training"}));
  CLI11_PARSE(app, argc, argv);
  try {
    nibble::ops::use_cuda_device(0);
    nibble::measure(model, weights, part);
  } catch (const nibble::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
