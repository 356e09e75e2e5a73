#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "cli/serve_engine.h"
#include "cli/text_codec.h"
#include "rollout/server/api_server.h"
#include "rollout/server/engine_thread.h"
#include "rollout/server/http_server.h"
#include "rollout/server/served_model.h"

namespace nibble {

/// What a server is made of, and its limits.
struct ServeFlags {
  ServeEngineFlags engine;
  std::filesystem::path tokenizer;  ///< empty: the model's
  std::string served_name;          ///< empty: the directory's
  std::string host = "127.0.0.1";
  int64_t port = 8000;  ///< 0: any free one
  int64_t max_body_mb = 8;
  int64_t max_connections = 256;
  int64_t request_timeout_s = 600;
  int64_t shutdown_timeout_s = 30;
  std::string api_key_env;
};

/// Throws Error{kInvalidArgument} naming a flag that is out of range.
void check_serve_flags(const ServeFlags& flags);

/// The key in an environment variable; empty if none is named. Throws Error{kInvalidArgument} if
/// it is not set.
std::string api_key_of(const std::string& variable);

/// A model behind HTTP in this process: listens from its construction on, serves from when the
/// model is loaded. One thread; the others are its own.
class ServeStack {
 public:
  /// `make` runs on the engine's thread after start(). Errors as of check_serve_flags, TextCodec
  /// and HttpServer.
  ServeStack(const ServeFlags& flags, std::function<ServedEngine()> make);
  ServeStack(const ServeStack&) = delete;
  ServeStack& operator=(const ServeStack&) = delete;
  ~ServeStack();

  void start() { engine_.start(); }
  int port() const { return http_.port(); }
  const ServedModel& model() const { return model_; }
  const TextCodec& codec() const { return codec_; }
  const EngineThread& engine() const { return engine_; }
  /// Ends what is open after --shutdown-timeout. Rethrows what ended the engine, if something did.
  void stop();

 private:
  const ServeFlags flags_;
  const TextCodec codec_;
  const ServedModel model_;
  EngineThread engine_;
  ApiServer api_;
  HttpServer http_;
};

}  // namespace nibble
