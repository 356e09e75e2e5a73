// Decode speed of the rollout engine: a random INT4 Llama of SmolLM2-135M's shape, batches of 1, 8,
// 32 and 64 sequences. Checks first that every sequence of a batch gets what it gets alone.
//
//   engine_bench [--threads N] [--tokens N] [--prompt N] [--batch N]
//
// One JSON line a batch. Bound: weights read once a step from memory, and 2 FLOP a weight and
// token.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <random>

#include "core/base/fail.h"
#include "core/models/weights.h"
#include "core/ops/torch_parallel.h"
#include "core/quant/bf16.h"
#include "rollout/engine/engine.h"

namespace nibble {
namespace {

struct Options {
  int threads = 2;
  int64_t prompt_tokens = 64;
  int64_t new_tokens = 64;
  int64_t batch = 0;  // 0: all
};

ModelConfig llama_135m() {
  ModelConfig c;
  c.vocab = 49152;
  c.hidden = 576;
  c.intermediate = 1536;
  c.num_layers = 30;
  c.num_heads = 9;
  c.num_kv_heads = 3;
  c.head_dim = 64;
  c.max_position = 2048;
  c.rms_eps = 1e-5f;
  c.rope.theta = 100000.0;
  c.layer_is_moe.assign(30, false);
  return c;  // an untied head: 0.16B parameters
}

std::shared_ptr<ResidentWeights> random_weights(const ModelSpec& spec) {
  const QuantizationPlan plan = plan_quantization(spec.table, QuantTargets::kLinear, 4, 64);
  auto weights = std::make_shared<ResidentWeights>(spec.table, plan);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> unit(-1.0f, 1.0f);
  for (int64_t p = 0; p < spec.table.size(); ++p) {
    const ParameterSpec& parameter = spec.table.at(p);
    StoredParameter& stored = weights->stored(p);
    for (uint32_t& word : stored.words) word = random();
    for (uint16_t& scale : stored.scale)
      scale = quant::float_to_bf16(0.008f + 0.002f * unit(random));
    for (uint16_t& bits : stored.bf16) {
      bits = quant::float_to_bf16(parameter.is_vector() ? 1.0f : 0.08f * unit(random));
    }
  }
  return weights;
}

std::vector<GenerateRequest> requests(const Options& options, int64_t first, int64_t count) {
  std::vector<GenerateRequest> out;
  for (int64_t i = first; i < first + count; ++i) {
    GenerateRequest request;
    request.id = static_cast<uint64_t>(i);
    request.prompt_id = static_cast<uint64_t>(i);
    std::mt19937 random(static_cast<unsigned>(i));
    for (int64_t t = 0; t < options.prompt_tokens; ++t) {
      request.prompt.push_back(static_cast<int32_t>(random() % 49152));
    }
    request.max_new_tokens = options.new_tokens;
    request.seed = 1;
    out.push_back(std::move(request));
  }
  return out;
}

struct Result {
  std::vector<Completion> done;  // by id
  double prefill_s = 0.0;
  double decode_s = 0.0;
  int64_t decode_tokens = 0;
};

Result run(const ModelSpec& spec, const std::shared_ptr<ResidentWeights>& weights,
           const Options& options, std::vector<GenerateRequest> batch) {
  const auto size = static_cast<int64_t>(batch.size());
  EngineConfig config;
  config.max_running = size;
  config.max_step_tokens = 512;
  config.max_positions = options.prompt_tokens + options.new_tokens;
  config.kv_slots = size * config.max_positions;
  Engine engine(spec, config, ops::torch_parallel());
  engine.set_weights(weights, 1);
  if (engine.submit(std::move(batch)) != SubmitOutcome::kAccepted) {
    fail(ErrorCode::kInternal, "the engine refused {} requests", size);
  }
  Result result;
  while (engine.has_work()) {
    const auto begin = std::chrono::steady_clock::now();
    const int64_t tokens = engine.step();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    // Prompts fill whole steps, so a step of at most one token a sequence is all decodes.
    const bool is_decode = tokens <= size && result.prefill_s > 0.0;
    (is_decode ? result.decode_s : result.prefill_s) += seconds.count();
    if (is_decode) result.decode_tokens += tokens;
  }
  result.done = engine.take_finished();
  std::sort(result.done.begin(), result.done.end(),
            [](const Completion& a, const Completion& b) { return a.id < b.id; });
  return result;
}

void check_against_alone(const ModelSpec& spec, const std::shared_ptr<ResidentWeights>& weights) {
  const Options brief{2, 9, 6, 0};
  const std::vector<Completion> together = run(spec, weights, brief, requests(brief, 0, 5)).done;
  for (int64_t i = 0; i < 5; ++i) {
    const Completion alone = run(spec, weights, brief, requests(brief, i, 1)).done.at(0);
    const Completion& batched = together.at(static_cast<size_t>(i));
    if (alone.tokens == batched.tokens && alone.log_probs == batched.log_probs) continue;
    fail(ErrorCode::kInternal, "request {} differs in a batch from what it is alone", i);
  }
}

void measure(const Options& options) {
  ops::set_num_threads(options.threads);
  const ModelSpec spec = make_model_spec(llama_135m());
  const auto weights = random_weights(spec);
  check_against_alone(spec, weights);
  for (const int64_t batch : {1, 8, 32, 64}) {
    if (options.batch != 0 && options.batch != batch) continue;
    const Result result = run(spec, weights, options, requests(options, 0, batch));
    const double steps = static_cast<double>(result.decode_tokens) / static_cast<double>(batch);
    fmt::print(
        "{{\"bench\": \"engine_decode\", \"model\": \"random llama 0.16B int4 g64\", \"batch\": "
        "{}, "
        "\"prompt\": {}, \"new\": {}, \"threads\": {}, \"decode_tokens_per_s\": {:.1f}, "
        "\"ms_per_step\": {:.3f}, \"weight_GB_per_s\": {:.2f}, \"prefill_tokens_per_s\": "
        "{:.1f}}}\n",
        batch, options.prompt_tokens, options.new_tokens, options.threads,
        static_cast<double>(result.decode_tokens) / result.decode_s, 1e3 * result.decode_s / steps,
        // The embedding is looked up, not read through.
        static_cast<double>(weights->num_bytes() - spec.config.vocab * spec.config.hidden * 2) *
            steps / result.decode_s * 1e-9,
        static_cast<double>(batch * options.prompt_tokens) / result.prefill_s);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Decode speed of the rollout engine");
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024));
  app.add_option("--tokens", options.new_tokens)->check(CLI::Range(2, 1024));
  app.add_option("--prompt", options.prompt_tokens)->check(CLI::Range(1, 1024));
  app.add_option("--batch", options.batch)->check(CLI::IsMember({0, 1, 8, 32, 64}));
  CLI11_PARSE(app, argc, argv);
  nibble::measure(options);
}
