#include "cli/serve_bench.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <optional>

#include "cli/bench_requests.h"
#include "cli/length_tail.h"
#include "cli/load_client.h"
#include "cli/model_engine.h"
#include "cli/process_memory.h"
#include "cli/serve_bench_report.h"
#include "cli/served_target.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr int64_t kMaxConcurrency = 4096;
constexpr int64_t kMaxRequests = 1 << 20;
constexpr int64_t kMaxTokens = 1 << 20;
// Of the answer that is compared with the engine's.
constexpr int64_t kCheckedTokens = 24;
// Ids that every tokenizer has, for a model that only its server knows.
constexpr int64_t kAnyVocab = 256;

void check_range(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from {} to {}", flag, value, least, most);
}

void check_flags(const ServeBenchFlags& flags) {
  check_range("--concurrency", flags.concurrency, 1, kMaxConcurrency);
  check_range("--requests", flags.requests, 1, kMaxRequests);
  check_range("--prompt-tokens", flags.prompt_tokens, 1, kMaxTokens);
  check_range("--max-new-tokens", flags.max_new_tokens, 1, kMaxTokens);
  check_range("--new-tokens", flags.new_tokens, 1, flags.max_new_tokens);
  check_range("--request-timeout", flags.server.request_timeout_s, 1, 1'000'000);
  check_range("--seed", flags.seed, 0, INT64_MAX);
  if (!(flags.length_sigma >= 0 && flags.length_sigma <= 4)) {
    fail(ErrorCode::kInvalidArgument, "--length-sigma is {}; it must be from 0 to 4",
         flags.length_sigma);
  }
  if (!(flags.temperature >= 0 && flags.temperature <= 100)) {
    fail(ErrorCode::kInvalidArgument, "--temperature is {}; it must be from 0 to 100",
         flags.temperature);
  }
  if (flags.url.empty() && flags.server.engine.model.model.empty()) {
    fail(ErrorCode::kInvalidArgument, "give --model, or --url of a server that runs");
  }
}

void check_positions(const ServeBenchFlags& flags, int64_t positions) {
  // The last new token is never computed.
  const int64_t wanted = flags.prompt_tokens + flags.max_new_tokens - 1;
  if (positions == 0 || wanted <= positions) return;
  fail(ErrorCode::kInvalidArgument,
       "--prompt-tokens {} and --max-new-tokens {} do not fit into the {} positions of a sequence",
       flags.prompt_tokens, flags.max_new_tokens, positions);
}

LoadOptions load_options(const ServeBenchFlags& flags) {
  LoadOptions options;
  options.connections = flags.concurrency;
  options.request_timeout = std::chrono::seconds(flags.server.request_timeout_s);
  return options;
}

// What an engine of its own, with nothing beside it, says to the same prompt.
std::string engine_text(const ServeBenchFlags& flags, const LoadedModel& model,
                        const TextCodec& codec, std::vector<int32_t> prompt, int64_t tokens) {
  EngineConfig config;
  config.max_running = 1;
  config.max_positions = std::ssize(prompt) + tokens;
  config.kv_slots = config.max_positions + config.block_tokens;
  config.max_requests = 1;
  const auto engine = make_engine(model, flags.server.engine.model, config);
  std::vector<GenerateRequest> requests(1);
  requests[0].prompt = std::move(prompt);
  requests[0].max_new_tokens = tokens;
  requests[0].sampling.temperature = 0.0f;
  const SubmitOutcome outcome = engine->submit(std::move(requests));
  NIBBLE_CHECK(outcome == SubmitOutcome::kAccepted, "an empty engine refuses a request");
  while (engine->has_work()) engine->step();
  return codec.tokenizer().decode(engine->take_finished().at(0).tokens);
}

std::string whole_text(const ServeBenchFlags& flags, const ServedTarget& server,
                       const OrderedJson& fields) {
  const HttpAnswer answer = fetch(server.address(), "/v1/completions", fields.dump(),
                                  std::chrono::seconds(flags.server.request_timeout_s));
  try {
    return parse_json(answer.body, "the answer").at("choices").at(0).at("text");
  } catch (const Json::exception&) {
    fail(ErrorCode::kUnavailable, "{}: status {}: {}", server.address().name(), answer.status,
         answer.body.substr(0, 300));
  }
}

// In `fast` numerics on a GPU, products depend on the number of rows.
bool is_engine_comparable(const ServeBenchFlags& flags, const LoadedModel* model) {
  return model != nullptr &&
         !(model->gpu && numerics(flags.server.engine.model) == Numerics::kFast);
}

// Compares a greedy answer of the stream with the engine's text, or, where there is no engine to
// ask, with the server's own answer in one piece. Returns which.
const char* check_greedy(const ServeBenchFlags& flags, const ServedTarget& server,
                         const BenchRequests& requests, const std::string* engine_says) {
  const int64_t tokens = std::min(kCheckedTokens, flags.max_new_tokens);
  const std::vector<std::string> bodies = {requests.streamed(0, tokens, 0.0)};
  LoadOptions options = load_options(flags);
  options.keeps_text = true;
  const LoadAnswer answer = run_load(server.address(), bodies, options).at(0);
  if (!answer.failure.empty()) {
    fail(ErrorCode::kUnavailable, "{}: {}", server.address().name(), answer.failure);
  }
  if (answer.num_tokens != tokens) {
    fail(ErrorCode::kInternal, "the greedy answer has {} tokens; {} were asked for",
         answer.num_tokens, tokens);
  }
  const std::string want = engine_says != nullptr
                               ? *engine_says
                               : whole_text(flags, server, requests.fields(0, tokens, 0.0));
  if (answer.text != want) {
    fail(ErrorCode::kInternal, "the greedy answer of the stream is '{}'; the {} says '{}'",
         answer.text, engine_says != nullptr ? "engine" : "answer in one piece", want);
  }
  return engine_says != nullptr ? "engine" : "whole_answer";
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// The answers must have the asked-for numbers of tokens.
void count_answers(const std::vector<int64_t>& lengths, ServeMeasurement& measured) {
  for (size_t i = 0; i < measured.answers.size(); ++i) {
    const LoadAnswer& answer = measured.answers[i];
    if (!answer.failure.empty()) {
      ++measured.failed;
      continue;
    }
    if (answer.num_tokens != lengths[i]) {
      fail(ErrorCode::kInternal, "answer {} has {} tokens; {} were asked for", i, answer.num_tokens,
           lengths[i]);
    }
    measured.generated_tokens += answer.num_tokens;
  }
}

void measure(const ServeBenchFlags& flags, const ServedTarget& server,
             const BenchRequests& requests, ServeMeasurement& measured) {
  const LengthTail tail{static_cast<double>(flags.new_tokens), flags.length_sigma,
                        flags.max_new_tokens, static_cast<uint64_t>(flags.seed)};
  // As many as run together come first, and are not counted: they fill the cache and the heap.
  const int64_t warm_up = std::min(flags.concurrency, flags.requests);
  std::vector<int64_t> lengths = long_tailed_lengths(flags.requests, tail);
  std::vector<std::string> bodies;
  for (int64_t i = 0; i < warm_up; ++i) {
    bodies.push_back(requests.streamed(flags.requests + i + 1, lengths[static_cast<size_t>(i)],
                                       flags.temperature));
  }
  (void)run_load(server.address(), bodies, load_options(flags));
  bodies.clear();
  for (int64_t i = 0; i < flags.requests; ++i) {
    bodies.push_back(requests.streamed(i + 1, lengths[static_cast<size_t>(i)], flags.temperature));
  }
  const auto preempted = server.metric("nibble_preemptions_total");
  const int64_t resident = resident_bytes();
  PeakMemory peak;
  peak.look();
  LoadOptions options = load_options(flags);
  std::optional<int64_t> resident_half_way;
  options.on_tick = [&](int64_t num_answered) {
    peak.look();
    if (2 * num_answered >= flags.requests && !resident_half_way) {
      resident_half_way = resident_bytes();
    }
  };
  const Stopwatch watch;
  measured.answers = run_load(server.address(), bodies, options);
  measured.seconds = watch.elapsed_ms() / 1e3;
  server.check_idle();
  peak.look();
  count_answers(lengths, measured);
  measured.kv_slots = server.metric("nibble_kv_slots");
  const auto preempted_now = server.metric("nibble_preemptions_total");
  if (preempted && preempted_now) measured.preemptions = *preempted_now - *preempted;
  if (!server.is_own()) return;
  measured.peak_rss_mib = mib(peak.bytes());
  measured.rss_growth_mib = mib(resident_bytes() - resident);
  measured.rss_growth_late_mib = mib(resident_bytes() - *resident_half_way);
}

void add_engine_flags(CLI::App& command, ServeBenchFlags& flags, CLI::Option* url) {
  ServeEngineFlags& engine = flags.server.engine;
  const auto add = [&](const char* name, int64_t& value, const char* help) {
    command.add_option(name, value, help)->capture_default_str()->excludes(url);
  };
  add("--max-running", engine.max_running, "sequences that decode together");
  add("--max-positions", engine.max_positions, "longest prompt and response together");
  add("--kv-tokens", engine.kv_tokens, "capacity of the KV cache, in tokens");
  add("--max-draft-tokens", engine.max_draft_tokens, "tokens guessed ahead; 0: none");
}

}  // namespace

void add_serve_bench_flags(CLI::App& command, ServeBenchFlags& flags) {
  add_model_flags(command, flags.server.engine.model);
  command.get_option("--model")->required(false);
  command.add_option("--tokenizer", flags.server.tokenizer,
                     "directory of the tokenizer, if not the model's");
  CLI::Option* url = command.add_option(
      "--url", flags.url, "http://HOST:PORT of a server that runs; default: one is started");
  add_engine_flags(command, flags, url);
  command.add_option("--concurrency", flags.concurrency, "connections that send at a time")
      ->capture_default_str();
  command.add_option("--requests", flags.requests, "all counted, after as many as run together")
      ->capture_default_str();
  command.add_option("--prompt-tokens", flags.prompt_tokens, "of random prompts")
      ->capture_default_str();
  command.add_option("--new-tokens", flags.new_tokens, "median of the answers")
      ->capture_default_str();
  command.add_option("--max-new-tokens", flags.max_new_tokens, "of the longest answers")
      ->capture_default_str();
  command
      .add_option("--length-sigma", flags.length_sigma,
                  "spread of the lengths, of their logarithm; 0: all have the median")
      ->capture_default_str();
  command.add_option("--temperature", flags.temperature, "of the samples; 0: greedy")
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "of prompts and lengths")->capture_default_str();
  command
      .add_option("--request-timeout", flags.server.request_timeout_s,
                  "seconds that one request may take")
      ->capture_default_str();
  command.add_option("--api-key-env", flags.server.api_key_env,
                     "environment variable with the key that the server wants; default: none");
  command.add_flag("--json", flags.json, "print one JSON object in a line");
}

void run_serve_bench(ServeBenchFlags flags) {
  check_flags(flags);
  flags.server.port = 0;
  flags.server.max_connections = flags.concurrency + 16;
  flags.server.engine.max_queued = std::max(flags.server.engine.max_queued, flags.concurrency);
  std::shared_ptr<const LoadedModel> model;
  std::optional<TextCodec> codec;
  int64_t vocab = kAnyVocab;
  const ModelFlags& model_flags = flags.server.engine.model;
  if (!model_flags.model.empty()) {
    codec.emplace(model_flags.model, flags.server.tokenizer);
    (void)codec->tokenizer();
    model = load_model(model_flags);
    vocab = model->spec.config.vocab;
    if (flags.url.empty()) {
      check_positions(flags,
                      served_positions(flags.server.engine, model->spec.config.max_position));
    }
  }
  std::optional<std::string> engine_says;
  if (is_engine_comparable(flags, model.get())) {
    engine_says = engine_text(flags, *model, *codec, BenchRequests(flags, vocab, "").prompt(0),
                              std::min(kCheckedTokens, flags.max_new_tokens));
  }
  ServedTarget server(flags, model);
  check_positions(flags, server.max_positions());
  const BenchRequests requests(flags, vocab, server.model_name());
  ServeMeasurement measured;
  measured.model = model ? model_flags.model.string() : server.model_name();
  if (model && server.is_own()) measured.device = model->gpu ? "cuda" : "cpu";
  measured.greedy_check =
      check_greedy(flags, server, requests, engine_says ? &*engine_says : nullptr);
  measure(flags, server, requests, measured);
  server.stop();
  if (flags.json) {
    fmt::print("{}\n", serve_bench_json(flags, measured));
  } else {
    print_serve_bench(flags, measured);
  }
  (void)std::fflush(stdout);
  if (measured.failed == 0) return;
  const auto first = std::find_if(measured.answers.begin(), measured.answers.end(),
                                  [](const LoadAnswer& a) { return !a.failure.empty(); });
  fail(ErrorCode::kFailedPrecondition, "{} of {} requests failed; the first one: {}",
       measured.failed, flags.requests, first->failure);
}

}  // namespace nibble
