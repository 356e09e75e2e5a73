#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "cli/engine_ranks.h"
#include "cli/serve_stack.h"
#include "cli/stop_signals.h"
#include "core/base/json.h"
#include "core/base/log.h"

namespace nibble {
namespace {

constexpr std::chrono::milliseconds kLook{200};

struct ServeCommandFlags : ServeFlags {
  bool json = false;
};

void say(const ServeCommandFlags& flags, const OrderedJson& event) {
  if (!flags.json) return;
  std::printf("%s\n", event.dump().c_str());
  std::fflush(stdout);
}

// Until a signal comes, or the model turns out not to load.
void wait_for_end(const ServeCommandFlags& flags, const ServeStack& server, StopSignals& signals) {
  bool was_ready = false;
  while (!signals.wait_for(kLook)) {
    const EngineSnapshot snapshot = server.engine().snapshot();
    if (snapshot.state == EngineState::kFailed && !was_ready) return;
    if (snapshot.state != EngineState::kReady || was_ready) continue;
    was_ready = true;
    get_logger("serve")->info("ready model={} kv_tokens={} positions={}", server.model().name,
                              snapshot.kv_slots, server.model().max_tokens);
    say(flags, {{"event", "ready"}, {"model", server.model().name}});
  }
}

void run_serve(const ServeCommandFlags& flags) {
  check_serve_flags(flags);
  StopSignals signals;
  ServeStack server(
      flags, [&flags] { return make_served_engine(flags.engine, load_model(flags.engine.model)); });
  const auto log = get_logger("serve");
  log->info("listening host={} port={}", flags.host, server.port());
  say(flags, {{"event", "listening"}, {"host", flags.host}, {"port", server.port()}});
  server.start();
  wait_for_end(flags, server, signals);
  log->info("stopping open_samples={}", server.engine().snapshot().open_samples);
  server.stop();
}

void add_flags(CLI::App& command, ServeCommandFlags& flags) {
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
  auto flags = std::make_shared<ServeCommandFlags>();  // shared: parse and work are two callbacks
  add_flags(*command, *flags);
  command->footer(
      "Paths: /v1/completions, /v1/chat/completions, /v1/models, /generate (token ids in and "
      "out),\n"
      "/health, /metrics (Prometheus), /pause and /resume (POST). There is no authentication "
      "unless --api-key-env is given,\n"
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
