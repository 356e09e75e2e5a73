#include "cli/serve_stack.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include <spdlog/spdlog.h>

#include "cli/model_engine.h"
#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/base/log.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {
namespace {

constexpr int64_t kMaxSamplesOfRequest = 1024;
// For answers that are on their way when the engine has stopped.
constexpr std::chrono::milliseconds kLastWords{3'000};
// For the step that is under way when all requests have ended, or for loading.
constexpr std::chrono::seconds kLastStep{10};

void check_range(const char* flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from {} to {}", flag, value, least, most);
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
  if (!codec.has_tokenizer()) {
    get_logger("serve")->warn(
        "'{}' has no tokenizer: only /generate with input_ids works; name one with --tokenizer",
        flags.engine.model.model.string());
    return model;
  }
  model.tokenizer = &codec.tokenizer();
  model.encoder = &codec.encoder();
  model.max_prompt_bytes = most_text_bytes(codec.tokenizer(), model.max_tokens);
  return model;
}

HttpServerOptions http_options(const ServeFlags& flags) {
  HttpServerOptions options;
  options.host = flags.host;
  options.port = static_cast<int>(flags.port);
  options.max_body_bytes = flags.max_body_mb << 20;
  options.max_connections = static_cast<int>(flags.max_connections);
  options.answer_timeout = std::chrono::seconds(flags.request_timeout_s) + kLastWords;
  return options;
}

const ServeFlags& checked(const ServeFlags& flags) {
  check_serve_flags(flags);
  return flags;
}

}  // namespace

void check_serve_flags(const ServeFlags& flags) {
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

std::string api_key_of(const std::string& variable) {
  if (variable.empty()) return {};
  const auto key = read_env_variable(variable);
  if (!key) {
    fail(ErrorCode::kInvalidArgument,
         "--api-key-env {}: the environment variable is not set, or empty", variable);
  }
  return *key;
}

ServeStack::ServeStack(const ServeFlags& flags, std::function<ServedEngine()> make)
    : flags_(checked(flags)),
      codec_(flags.engine.model.model, flags.tokenizer),
      model_(describe_model(flags, codec_)),
      engine_(std::move(make), flags.engine.capacity()),
      api_({api_key_of(flags.api_key_env), std::chrono::seconds(flags.request_timeout_s)}, model_,
           engine_),
      http_(http_options(flags), api_.handlers()) {}

// Replies are dropped before the server that they go to.
ServeStack::~ServeStack() { (void)engine_.stop(Deadline::after(std::chrono::milliseconds(0))); }

void ServeStack::stop() {
  const bool has_ended =
      engine_.stop(Deadline::after(std::chrono::seconds(flags_.shutdown_timeout_s)), kLastStep);
  http_.shutdown(Deadline::after(kLastWords));
  if (!has_ended) {
    // A step that hangs, on a GPU or in wait for another rank, cannot be taken back; nor can its
    // thread be left behind by a process that ends in order.
    get_logger("serve")->critical(
        "the engine is still in a step or loading {} s after it was told to stop: the process ends "
        "without it",
        kLastStep.count());
    spdlog::shutdown();
    std::_Exit(1);
  }
  engine_.check();
}

}  // namespace nibble
