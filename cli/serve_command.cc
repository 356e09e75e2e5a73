#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/engine_ranks.h"
#include "cli/model_engine.h"
#include "cli/serve_engine.h"
#include "cli/stop_signals.h"
#include "cli/text_codec.h"
#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"
#include "rollout/server/api_server.h"
#include "rollout/server/http_server.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSamplesOfRequest = 1024;
// For answers that are on their way when the engine has stopped.
constexpr std::chrono::milliseconds kLastWords{3'000};
constexpr std::chrono::milliseconds kLook{200};

struct ServeFlags {
  ServeEngineFlags engine;
  std::filesystem::path tokenizer;  // empty: the model's
  std::string served_name;          // empty: the directory's
  std::string host = "127.0.0.1";
  int64_t port = 8000;
  int64_t max_body_mb = 8;
  int64_t max_connections = 256;
  int64_t request_timeout_s = 600;
  int64_t shutdown_timeout_s = 30;
  std::string api_key_env;
  bool json = false;
};

void check_range(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from {} to {}", flag, value, least, most);
}

void check_flags(const ServeFlags& flags) {
  check_model_flags(flags.engine.model);
  check_range("--port", flags.port, 0, 65'535);
  check_range("--max-running", flags.engine.max_running, 1, 4096);
  check_range("--max-queued", flags.engine.max_queued, 0, 1 << 16);
  check_range("--max-positions", flags.engine.max_positions, 1, int64_t{1} << 24);
  check_range("--kv-tokens", flags.engine.kv_tokens, 1, int64_t{1} << 28);
  check_range("--max-draft-tokens", flags.engine.max_draft_tokens, 0, 256);
  check_draft_flags(flags.engine.draft, flags.engine.max_draft_tokens);
  check_range("--max-body-mb", flags.max_body_mb, 1, 1024);
  check_range("--max-connections", flags.max_connections, 1, 1 << 16);
  check_range("--request-timeout", flags.request_timeout_s, 1, 1'000'000);
  check_range("--shutdown-timeout", flags.shutdown_timeout_s, 0, 1'000'000);
}

std::string api_key(const ServeFlags& flags) {
  if (flags.api_key_env.empty()) return {};
  const auto key = read_env_variable(flags.api_key_env);
  if (!key) {
    fail(ErrorCode::kInvalidArgument,
         "--api-key-env {}: the environment variable is not set, or empty", flags.api_key_env);
  }
  return *key;
}

std::string served_name(const ServeFlags& flags) {
  if (!flags.served_name.empty()) return flags.served_name;
  return std::filesystem::weakly_canonical(flags.engine.model.model).filename().string();
}

ServedModel describe_model(const ServeFlags& flags, const TextCodec& codec) {
  const HfDirectory directory(flags.engine.model.model);
  const ModelConfig config =
      parse_model_config(directory.config(), (directory.path() / "config.json").string());
  ServedModel model;
  model.name = served_name(flags);
  model.stop_ids = codec.stop_ids();
  model.vocab = config.vocab;
  model.max_tokens = served_positions(flags.engine, config.max_position);
  model.max_samples = std::min(kMaxSamplesOfRequest, flags.engine.capacity());
  model.created_s = unix_ms() / 1000;
  if (!codec.has_tokenizer()) return model;
  model.tokenizer = &codec.tokenizer();
  model.encoder = &codec.encoder();
  model.max_prompt_bytes = most_text_bytes(codec.tokenizer(), model.max_tokens);
  return model;
}

void say(const ServeFlags& flags, const OrderedJson& event) {
  if (!flags.json) return;
  std::printf("%s\n", event.dump().c_str());
  std::fflush(stdout);
}

// Until a signal comes, or the model turns out not to load.
void wait_for_end(const ServeFlags& flags, const ServedModel& model, const EngineThread& engine,
                  StopSignals& signals) {
  bool was_ready = false;
  while (!signals.wait_for(kLook)) {
    const EngineSnapshot snapshot = engine.snapshot();
    if (snapshot.state == EngineState::kFailed && !was_ready) return;
    if (snapshot.state != EngineState::kReady || was_ready) continue;
    was_ready = true;
    get_logger("serve")->info("ready model={} kv_tokens={} positions={}", model.name,
                              snapshot.kv_slots, model.max_tokens);
    say(flags, {{"event", "ready"}, {"model", model.name}});
  }
}

void run_serve(const ServeFlags& flags) {
  check_flags(flags);
  StopSignals signals;
  const TextCodec codec(flags.engine.model.model, flags.tokenizer);
  const ServedModel model = describe_model(flags, codec);
  EngineThread engine([&flags] { return make_served_engine(flags.engine); },
                      flags.engine.capacity());
  ApiServer api({api_key(flags), std::chrono::seconds(flags.request_timeout_s)}, model, engine);
  HttpServerOptions options;
  options.host = flags.host;
  options.port = static_cast<int>(flags.port);
  options.max_body_bytes = flags.max_body_mb << 20;
  options.max_connections = static_cast<int>(flags.max_connections);
  HttpServer http(options, api.handlers());
  const auto log = get_logger("serve");
  log->info("listening host={} port={}", flags.host, http.port());
  say(flags, {{"event", "listening"}, {"host", flags.host}, {"port", http.port()}});
  engine.start();
  wait_for_end(flags, model, engine, signals);
  log->info("stopping open_samples={}", engine.snapshot().open_samples);
  engine.stop(Deadline::after(std::chrono::seconds(flags.shutdown_timeout_s)));
  http.shutdown(Deadline::after(kLastWords));
  engine.check();
}

void add_flags(CLI::App& command, ServeFlags& flags) {
  add_model_flags(command, flags.engine.model);
  command.add_option("--tokenizer", flags.tokenizer,
                     "directory of the tokenizer, if not the model's");
  command.add_option("--served-model-name", flags.served_name,
                     "what clients call the model; default: the directory's name");
  command.add_option("--host", flags.host, "address to listen on; 0.0.0.0: every one")
      ->capture_default_str();
  command.add_option("--port", flags.port, "0: any free one, which the log names")
      ->capture_default_str();
  command.add_option("--max-running", flags.engine.max_running, "sequences that decode together")
      ->capture_default_str();
  command
      .add_option("--max-queued", flags.engine.max_queued,
                  "sequences that may wait; beyond that a request gets 429")
      ->capture_default_str();
  command
      .add_option("--max-positions", flags.engine.max_positions,
                  "longest prompt and response together")
      ->capture_default_str();
  command.add_option("--kv-tokens", flags.engine.kv_tokens, "capacity of the KV cache, in tokens")
      ->capture_default_str();
  command
      .add_option("--max-draft-tokens", flags.engine.max_draft_tokens,
                  "tokens guessed from the prompt and other answers; changes no answer; 0: none")
      ->capture_default_str();
  add_draft_flags(command, flags.engine.draft);
  command.add_option("--max-body-mb", flags.max_body_mb, "largest request, in MiB")
      ->capture_default_str();
  command.add_option("--max-connections", flags.max_connections, "open at a time")
      ->capture_default_str();
  command
      .add_option("--request-timeout", flags.request_timeout_s,
                  "seconds that one request may take, waiting included")
      ->capture_default_str();
  command
      .add_option("--shutdown-timeout", flags.shutdown_timeout_s,
                  "seconds that open requests have after Ctrl-C or SIGTERM")
      ->capture_default_str();
  command.add_option("--api-key-env", flags.api_key_env,
                     "environment variable with the key that clients must send; default: none");
  command.add_flag("--json", flags.json, "events as JSON lines on stdout: listening, ready");
}

}  // namespace

void add_serve_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand("serve", "A model behind an OpenAI-compatible HTTP API");
  auto flags = std::make_shared<ServeFlags>();  // shared: parse and work are two callbacks
  add_flags(*command, *flags);
  command->footer(
      "Paths: /v1/completions, /v1/chat/completions, /v1/models, /generate (token ids in and "
      "out),\n"
      "/health, /metrics (Prometheus). There is no authentication unless --api-key-env is given,\n"
      "and no TLS: put a proxy before a server that others can reach.\n"
      "Example:\n"
      "  nibble serve --model models/SmolLM2-135M-Instruct-INT4-g32 --port 8000 &\n"
      "  curl http://127.0.0.1:8000/v1/chat/completions -d \\\n"
      "      '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 2+2?\"}], "
      "\"max_tokens\": "
      "32}'");
  command->callback([flags, &context] {
    context.run = [flags] { run_on_ranks(flags->engine.model, [&] { run_serve(*flags); }); };
  });
}

}  // namespace nibble
