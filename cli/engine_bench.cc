#include "cli/engine_bench.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "cli/median.h"
#include "cli/memory_stream.h"
#include "cli/model_engine.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/ops/torch_parallel.h"
#include "rollout/engine/engine.h"

namespace nibble {
namespace {

constexpr int64_t kMaxBatch = 4096;
constexpr int64_t kMaxTokens = 1 << 20;

void check_range(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from {} to {}", flag, value, least, most);
}

void check_flags(const EngineBenchFlags& flags, const LoadedModel& model) {
  for (const int64_t batch : flags.batches) check_range("--batch", batch, 1, kMaxBatch);
  check_range("--prompt-tokens", flags.prompt_tokens, 1, kMaxTokens);
  check_range("--new-tokens", flags.new_tokens, 1, kMaxTokens);
  check_range("--rounds", flags.rounds, 1, 1000);
  const int64_t positions = flags.prompt_tokens + flags.new_tokens;
  if (positions <= model.spec.config.max_position) return;
  fail(ErrorCode::kInvalidArgument,
       "--prompt-tokens and --new-tokens are {} together; the model takes {}", positions,
       model.spec.config.max_position);
}

std::unique_ptr<Engine> engine_for(const LoadedModel& model, const EngineBenchFlags& flags,
                                   int64_t batch) {
  EngineConfig config;
  config.max_running = batch;
  config.max_draft_tokens = flags.max_draft_tokens;
  config.drafts_adapt = !flags.guess_always;
  config.max_step_tokens = std::max<int64_t>(512, batch * (1 + flags.max_draft_tokens));
  config.max_positions = flags.prompt_tokens + flags.new_tokens;
  // A block more for each: a sequence may end within one.
  config.kv_slots = batch * (config.max_positions + config.block_tokens);
  config.max_requests = std::max<int64_t>(batch, 16);
  Drafts drafts = load_drafts(model, flags.model, flags.draft);
  drafts.look_up = LookUp::kNever;
  return make_engine(model, flags.model, config, drafts);
}

std::vector<GenerateRequest> random_requests(const LoadedModel& model,
                                             const EngineBenchFlags& flags, int64_t first,
                                             int64_t count) {
  std::vector<GenerateRequest> requests;
  for (int64_t i = first; i < first + count; ++i) {
    GenerateRequest request;
    request.id = static_cast<uint64_t>(i);
    request.prompt_id = request.id;
    std::mt19937 random(static_cast<unsigned>(i));
    for (int64_t t = 0; t < flags.prompt_tokens; ++t) {
      request.prompt.push_back(
          static_cast<int32_t>(random() % static_cast<unsigned>(model.spec.config.vocab)));
    }
    request.max_new_tokens = flags.new_tokens;
    request.sampling.temperature = flags.temperature;
    request.seed = 1;
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Times {
  double prefill_s = 0.0;
  std::vector<double> decode_ms;  // of steps that compute no prompt
  int64_t decoded = 0;            // tokens in these
  double decode_s() const { return std::accumulate(decode_ms.begin(), decode_ms.end(), 0.0) / 1e3; }
};

std::vector<Completion> run_batch(Engine& engine, std::vector<GenerateRequest> requests,
                                  Times& times) {
  if (engine.submit(std::move(requests)) != SubmitOutcome::kAccepted) {
    fail(ErrorCode::kInternal, "the engine refuses the batch");
  }
  while (engine.has_work()) {
    const EngineStats before = engine.stats();
    const Stopwatch watch;
    engine.step();
    const double ms = watch.elapsed_ms();
    const EngineStats after = engine.stats();
    if (after.prompt_tokens > before.prompt_tokens) {
      times.prefill_s += ms / 1e3;
    } else {
      times.decode_ms.push_back(ms);
      times.decoded += after.decoded_tokens - before.decoded_tokens;
    }
  }
  std::vector<Completion> done = engine.take_finished();
  std::sort(done.begin(), done.end(),
            [](const Completion& a, const Completion& b) { return a.id < b.id; });
  return done;
}

// The longest of a few swaps of weights in the middle of a batch, which goes on.
double longest_swap_ms(Engine& engine, const LoadedModel& model, const EngineBenchFlags& flags,
                       int64_t batch) {
  constexpr int kSwaps = 5;
  double longest = 0.0;
  for (int i = 0; i < kSwaps; ++i) {
    if (engine.submit(random_requests(model, flags, 0, batch)) != SubmitOutcome::kAccepted) {
      fail(ErrorCode::kInternal, "the engine refuses the batch");
    }
    const int64_t before = engine.stats().decoded_tokens;
    while (engine.has_work() &&
           engine.stats().decoded_tokens < before + batch * flags.new_tokens / 2) {
      engine.step();
    }
    const Stopwatch watch;
    engine.set_weights(model.weights, engine.version() + 1);
    longest = std::max(longest, watch.elapsed_ms());
    while (engine.has_work()) engine.step();
    engine.take_finished();
  }
  return longest;
}

// In `fast` numerics on a GPU, products depend on the number of rows.
void check_against_alone(const LoadedModel& model, const EngineBenchFlags& flags) {
  if (model.gpu && numerics(flags.model) == Numerics::kFast) return;
  EngineBenchFlags brief = flags;
  brief.prompt_tokens = std::min<int64_t>(9, flags.prompt_tokens);
  brief.new_tokens = std::min<int64_t>(6, flags.new_tokens);
  Times ignored;
  const auto together =
      run_batch(*engine_for(model, brief, 5), random_requests(model, brief, 0, 5), ignored);
  for (size_t i = 0; i < together.size(); ++i) {
    const auto alone =
        run_batch(*engine_for(model, brief, 1),
                  random_requests(model, brief, static_cast<int64_t>(i), 1), ignored);
    if (alone.at(0).tokens == together[i].tokens &&
        alone.at(0).log_probs == together[i].log_probs) {
      continue;
    }
    fail(ErrorCode::kInternal, "sample {} differs in a batch from what it is alone", i);
  }
}

// What a step of `batch` tokens reads of the weights: of experts those that it can be expected to
// choose if all are equally likely; of an embedding rows alone, unless it is the head too.
double bytes_a_step(const LoadedModel& model, int64_t batch) {
  const ParameterTable& table = model.spec.table;
  double bytes = 0.0;
  for (int64_t p = 0; p < table.size(); ++p) {
    if (p == table.embedding && p != table.lm_head) continue;
    const StoredParameter& stored = std::as_const(*model.weights).stored(p);
    auto own = static_cast<double>(stored.bf16.num_bytes() + stored.words.num_bytes() +
                                   stored.scale.num_bytes());
    const int64_t layer = table.at(p).layer;
    const int64_t first = layer < 0 ? -1 : table.layers[static_cast<size_t>(layer)].first_expert;
    if (first >= 0 && p >= first && p < first + 3 * table.num_experts) {
      const double share =
          static_cast<double>(model.spec.config.moe.top_k) / static_cast<double>(table.num_experts);
      own *= 1.0 - std::pow(1.0 - share, static_cast<double>(batch));
    }
    bytes += own;
  }
  return bytes;
}

void print_decode(const EngineBenchFlags& flags, const LoadedModel& model, int64_t batch,
                  const Times& times, const EngineTotals& stats, double swap_ms,
                  double stream_gb_per_s) {
  const double seconds = times.decode_s();
  const double rate = static_cast<double>(times.decoded) / seconds;
  const double steps_per_s = static_cast<double>(times.decode_ms.size()) / seconds;
  const double weight_rate = bytes_a_step(model, batch) * steps_per_s / 1e9;
  OrderedJson line = {{"bench", "decode"},
                      {"engine", "nibble"},
                      {"model", flags.model.model.string()},
                      {"device", model.gpu ? "cuda" : "cpu"},
                      {"batch", batch},
                      {"prompt_tokens", flags.prompt_tokens},
                      {"new_tokens", flags.new_tokens},
                      {"tokens_per_s", rate},
                      {"ms_per_step_median", median(times.decode_ms)},
                      {"weight_gb_per_s", weight_rate},
                      {"swap_ms", swap_ms}};
  if (!model.gpu) {
    line["threads"] = ops::num_threads();
    line["stream_gb_per_s"] = stream_gb_per_s;
    line["share_of_stream"] = weight_rate / stream_gb_per_s;
  }
  line["prefill_tokens_per_s"] = static_cast<double>(stats.prompt_tokens) / times.prefill_s;
  if (flags.max_draft_tokens > 0) {
    line["guessed_tokens"] = stats.guessed_tokens;
    line["accepted_tokens"] = stats.accepted_tokens;
    line["tokens_per_sample_step"] =
        static_cast<double>(stats.decoded_tokens) / static_cast<double>(stats.decode_spans);
    line["draft_ms_per_step"] =
        stats.draft_ms / static_cast<double>(std::max<size_t>(1, times.decode_ms.size()));
  }
  line["n"] = flags.rounds;
  if (flags.json) {
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("batch {:>4}: {:9.1f} tokens/s, {:8.3f} ms a step, weights read at {:6.2f} GB/s{}\n",
               batch, rate, median(times.decode_ms), weight_rate,
               model.gpu ? ""
                         : fmt::format(" ({:.0f} % of what memory gives)",
                                       100.0 * weight_rate / stream_gb_per_s));
  }
  (void)std::fflush(stdout);
}

}  // namespace

void add_engine_bench_flags(CLI::App& command, EngineBenchFlags& flags, bool is_decode) {
  add_model_flags(command, flags.model);
  if (is_decode) {
    command.add_option("--batch", flags.batches, "sequences that decode together, such as 1,8,32")
        ->delimiter(',')
        ->capture_default_str();
    command.add_option("--new-tokens", flags.new_tokens, "of each sequence")->capture_default_str();
    command.add_option("--temperature", flags.temperature, "of the samples; 0: greedy")
        ->capture_default_str();
    command
        .add_option("--max-draft-tokens", flags.max_draft_tokens,
                    "tokens guessed ahead (speculation); every round repeats the prompts of the "
                    "first, with other seeds")
        ->capture_default_str();
    command.add_flag("--guess-always", flags.guess_always,
                     "check all guesses, also those that do not pay");
    add_draft_flags(command, flags.draft, LookUp::kNever);
  }
  command.add_option("--prompt-tokens", flags.prompt_tokens, "of random prompts")
      ->capture_default_str();
  command.add_option("--rounds", flags.rounds, "all counted, after one that is not")
      ->capture_default_str();
  command.add_flag("--json", flags.json, "print a JSON object a line");
}

void run_decode_bench(const EngineBenchFlags& flags) {
  const auto model = load_model(flags.model);
  check_flags(flags, *model);
  check_range("--max-draft-tokens", flags.max_draft_tokens, 0, 256);
  check_draft_flags(flags.draft, flags.max_draft_tokens);
  check_against_alone(*model, flags);
  const double stream = model->gpu ? 0.0 : memory_read_gb_per_s(ops::torch_parallel());
  for (const int64_t batch : flags.batches) {
    const auto engine = engine_for(*model, flags, batch);
    Times warm_up;
    run_batch(*engine, random_requests(*model, flags, 0, batch), warm_up);
    Times times;
    const EngineStats before = engine->stats();
    for (int64_t round = 1; round <= flags.rounds; ++round) {
      // Prompts come from the first round's, so that speculation has an earlier epoch to look at;
      // what the cache knows of them is forgotten.
      engine->set_weights(model->weights, 1 + round);
      auto requests = random_requests(*model, flags, 0, batch);
      for (GenerateRequest& request : requests) request.seed = static_cast<uint64_t>(1 + round);
      run_batch(*engine, std::move(requests), times);
    }
    const EngineTotals done = engine->stats().since(before);
    const double swap_ms = longest_swap_ms(*engine, *model, flags, batch);
    print_decode(flags, *model, batch, times, done, swap_ms, stream);
  }
}

void run_prefill_bench(EngineBenchFlags flags) {
  const auto model = load_model(flags.model);
  flags.new_tokens = 1;
  check_flags(flags, *model);
  check_against_alone(*model, flags);
  const auto engine = engine_for(*model, flags, 1);
  std::vector<double> ms;
  for (int64_t round = 0; round <= flags.rounds; ++round) {
    if (round > 0) engine->set_weights(model->weights, 1 + round);
    Times times;
    run_batch(*engine, random_requests(*model, flags, round, 1), times);
    if (round > 0) ms.push_back(times.prefill_s * 1e3);
  }
  const double rate = static_cast<double>(flags.prompt_tokens) / median(ms) * 1e3;
  if (flags.json) {
    const OrderedJson line = {{"bench", "prefill"},
                              {"engine", "nibble"},
                              {"model", flags.model.model.string()},
                              {"device", model->gpu ? "cuda" : "cpu"},
                              {"threads", ops::num_threads()},
                              {"prompt_tokens", flags.prompt_tokens},
                              {"tokens_per_s", rate},
                              {"ms", median(ms)},
                              {"n", flags.rounds}};
    fmt::print("{}\n", line.dump());
  } else {
    fmt::print("{} prompt tokens: {:.1f} tokens/s, {:.2f} ms\n", flags.prompt_tokens, rate,
               median(ms));
  }
}

}  // namespace nibble
