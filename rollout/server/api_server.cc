#include "rollout/server/api_server.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "core/base/sha256.h"
#include "rollout/server/api_call.h"
#include "rollout/server/request_error.h"

namespace nibble {
namespace {

struct Route {
  std::string_view path;
  std::string_view method;
  std::optional<Endpoint> endpoint;  // none: answered at once
};

constexpr std::array kRoutes = {Route{"/v1/completions", "POST", Endpoint::kCompletions},
                                Route{"/v1/chat/completions", "POST", Endpoint::kChat},
                                Route{"/generate", "POST", Endpoint::kGenerate},
                                Route{"/v1/models", "GET", std::nullopt},
                                Route{"/health", "GET", std::nullopt},
                                Route{"/metrics", "GET", std::nullopt},
                                Route{"/pause", "POST", std::nullopt},
                                Route{"/resume", "POST", std::nullopt},
                                Route{"/is_paused", "GET", std::nullopt}};

constexpr std::string_view kModels = "/v1/models";
// What is refused below the API, or by its head, counts under this path.
constexpr std::string_view kOther = "other";

const Route* find_route(std::string_view path) {
  // One model of the list has a path of its own.
  if (path.starts_with(kModels) && path.substr(kModels.size()).starts_with('/')) path = kModels;
  for (const Route& route : kRoutes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

std::string digest(std::string_view text) {
  Sha256 sha;
  sha.update(text);
  return sha.finish();
}

// In a time that depends on neither text, nor on where they differ: digests are compared whole.
bool are_equal(std::string_view a, std::string_view b) {
  const std::string left = digest(a);
  const std::string right = digest(b);
  unsigned char difference = 0;
  for (size_t i = 0; i < left.size(); ++i) {
    difference |= static_cast<unsigned char>(left[i] ^ right[i]);
  }
  return difference == 0;
}

bool is_authorized(std::string_view header, std::string_view key) {
  constexpr std::string_view kScheme = "bearer ";  // in any case
  if (header.size() < kScheme.size()) return false;
  const bool is_bearer = std::equal(
      kScheme.begin(), kScheme.end(), header.begin(),
      [](char want, char got) { return want == (got >= 'A' && got <= 'Z' ? got + 32 : got); });
  return is_bearer && are_equal(header.substr(kScheme.size()), key);
}

// vLLM's other modes would end requests, or wait for them.
bool is_plain_pause(const HttpRequest& request) {
  if (!request.body.empty() && request.body != "{}") return false;
  return request.query.empty() || (request.path == "/pause" && request.query == "mode=keep");
}

HttpResponse is_paused_response(const EngineSnapshot& snapshot) {
  HttpResponse response;
  response.body = dump_json({{"is_paused", snapshot.is_paused}});
  return response;
}

// No step takes so many seconds unless something hangs: a GPU, or another rank.
constexpr double kLongestStep = 60.0;

uint64_t entropy() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

ApiServer::ApiServer(ApiOptions options, const ServedModel& model, EngineThread& engine)
    : options_(std::move(options)), model_(model), engine_(engine), random_(entropy()) {}

HttpHandlers ApiServer::handlers() {
  HttpHandlers handlers;
  handlers.screen = [this](const HttpRequest& head) {
    auto refusal = screen(head);
    if (refusal) metrics_.count_request(kOther, outcome_of(refusal->status));
    return refusal;
  };
  handlers.handle = [this](const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
    handle(request, reply);
  };
  handlers.make_error = [this](int status, const std::string& message) {
    metrics_.count_request(kOther, outcome_of(status));
    return error_response(status, message);
  };
  return handlers;
}

std::optional<HttpResponse> ApiServer::screen(const HttpRequest& head) const {
  // Health is open to all: what watches a server need not know its secret.
  if (!options_.api_key.empty() && head.path != "/health" &&
      !is_authorized(head.authorization, options_.api_key)) {
    return error_response(401, "send the API key as 'Authorization: Bearer KEY'");
  }
  const Route* route = find_route(head.path);
  if (route == nullptr) {
    return error_response(404, fmt::format("there is no '{}' here", head.path.substr(0, 200)));
  }
  const bool asks_for_head = head.method == "HEAD" && route->method == "GET";
  if (head.method == route->method || asks_for_head) return std::nullopt;
  HttpResponse response =
      error_response(405, fmt::format("{} takes {} only", route->path, route->method));
  response.allow = std::string(route->method);
  return response;
}

void ApiServer::handle(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  const Route* route = find_route(request.path);
  if (route->endpoint) return call(*route->endpoint, request.body, reply);
  if (route->path == "/health") return reply->send(health());
  if (route->path == "/metrics") return reply->send(metrics(request.num_connections));
  if (route->path == "/pause" || route->path == "/resume") return set_paused(request, reply);
  if (route->path == "/is_paused") return reply->send(is_paused_response(engine_.snapshot()));
  reply->send(models(request.path));
}

void ApiServer::call(Endpoint endpoint, std::string_view body,
                     const std::shared_ptr<HttpReply>& reply) {
  ApiRequest request;
  try {
    request = parse_api_request(endpoint, body, model_);
  } catch (const RequestError& error) {
    metrics_.count_request(endpoint_path(endpoint), outcome_of(error.status()));
    return reply->send(error_response(error));
  }
  const auto call =
      std::make_shared<ApiCall>(std::move(request), model_, metrics_, next_id(endpoint), reply);
  EngineJob job = call->job(random_seed(), Deadline::after(options_.request_timeout));
  if (job.size() == 0) return call->begin();  // an echo alone
  const EngineThread::Enqueued enqueued = engine_.enqueue(std::move(job));
  if (enqueued.outcome != EnqueueOutcome::kAccepted) {
    return call->refuse(not_accepted(enqueued.outcome));
  }
  reply->on_gone([&engine = engine_, number = enqueued.job] { engine.cancel(number); });
  call->begin();
}

HttpResponse ApiServer::not_accepted(EnqueueOutcome outcome) const {
  if (outcome == EnqueueOutcome::kFull) {
    return error_response(
        429, fmt::format("the queue is full ({} samples); try again later", engine_.capacity()));
  }
  const EngineSnapshot snapshot = engine_.snapshot();
  switch (snapshot.state) {
    case EngineState::kLoading:
      return error_response(503, "the model is being loaded; try again later");
    case EngineState::kFailed:
      return error_response(503, fmt::format("the engine failed: {}", snapshot.failure));
    case EngineState::kReady:
    case EngineState::kStopping:
    case EngineState::kStopped:
      break;
  }
  return error_response(503, "the server is shutting down");
}

// The answer comes once the engine stands still.
void ApiServer::set_paused(const HttpRequest& request, const std::shared_ptr<HttpReply>& reply) {
  if (!is_plain_pause(request)) {
    return reply->send(error_response(
        400, fmt::format("{} keeps all requests (mode=keep) and takes no other mode, field or body",
                         request.path)));
  }
  const auto answer = [this, reply] {
    const EngineSnapshot snapshot = engine_.snapshot();
    if (snapshot.state != EngineState::kReady) {
      return reply->send(not_accepted(EnqueueOutcome::kNotServing));
    }
    HttpResponse response;
    response.body = dump_json({{"status", snapshot.is_paused ? "paused" : "resumed"},
                               {"weight_version", snapshot.version}});
    reply->send(response);
  };
  if (!engine_.set_paused(request.path == "/pause", answer)) {
    reply->send(not_accepted(EnqueueOutcome::kNotServing));
  }
}

HttpResponse ApiServer::health() const {
  const EngineSnapshot snapshot = engine_.snapshot();
  if (snapshot.state != EngineState::kReady) return not_accepted(EnqueueOutcome::kNotServing);
  HttpResponse response;
  const bool is_stalled = snapshot.step_s > kLongestStep;
  if (is_stalled) response.status = 503;
  response.body = dump_json({{"status", is_stalled           ? "stalled"
                                        : snapshot.is_paused ? "paused"
                                                             : "ok"},
                             {"weight_version", snapshot.version}});
  return response;
}

HttpResponse ApiServer::models(const std::string& path) const {
  OrderedJson model;
  model["id"] = model_.name;
  model["object"] = "model";
  model["created"] = model_.created_s;
  model["owned_by"] = "nibble";
  model["max_model_len"] = model_.max_tokens;
  HttpResponse response;
  if (path != kModels) {
    const std::string name = path.substr(kModels.size() + 1);
    if (name != model_.name) return error_response(404, fmt::format("no model '{}' here", name));
    response.body = dump_json(model);
    return response;
  }
  OrderedJson list;
  list["object"] = "list";
  list["data"] = OrderedJson::array({model});
  response.body = dump_json(list);
  return response;
}

HttpResponse ApiServer::metrics(int64_t num_connections) const {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = metrics_.text(engine_.snapshot(), num_connections);
  return response;
}

std::string ApiServer::next_id(Endpoint endpoint) {
  const char* prefix = endpoint == Endpoint::kChat          ? "chatcmpl"
                       : endpoint == Endpoint::kCompletions ? "cmpl"
                                                            : "gen";
  const std::lock_guard lock(mutex_);
  return fmt::format("{}-{:016x}", prefix, random_());
}

uint64_t ApiServer::random_seed() {
  const std::lock_guard lock(mutex_);
  return random_();
}

}  // namespace nibble
