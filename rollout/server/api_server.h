#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>

#include "rollout/server/api_request.h"
#include "rollout/server/engine_thread.h"
#include "rollout/server/http_message.h"
#include "rollout/server/http_server.h"
#include "rollout/server/server_metrics.h"

namespace nibble {

struct ApiOptions {
  std::string api_key;  ///< empty: everybody is served
  std::chrono::milliseconds request_timeout{600'000};
};

/// The paths of the API over one engine: OpenAI's completions and chats, /generate, /v1/models,
/// /health and /metrics; /pause and /resume for who swaps weights or machines. Borrows model and
/// engine. Any thread may call any method.
class ApiServer {
 public:
  ApiServer(ApiOptions options, const ServedModel& model, EngineThread& engine);

  /// Refuses by its head what has no right or no sense: 401, 404, 405.
  std::optional<HttpResponse> screen(const HttpRequest& head) const;
  void handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  /// Both, for an HttpServer, which must not outlive this.
  HttpHandlers handlers();

 private:
  void call(Endpoint endpoint, std::string_view body, const std::shared_ptr<HttpReply>& reply);
  HttpResponse not_accepted(EnqueueOutcome outcome) const;
  void set_paused(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply);
  HttpResponse health() const;
  HttpResponse models(const std::string& path) const;
  HttpResponse metrics(int64_t num_connections) const;
  std::string next_id(Endpoint endpoint);
  uint64_t random_seed();

  const ApiOptions options_;
  const ServedModel& model_;
  EngineThread& engine_;
  ServerMetrics metrics_;
  std::mutex mutex_;
  std::mt19937_64 random_;  // guarded by mutex_
};

}  // namespace nibble
