#include "rollout/reward/reward_protocol.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "core/base/fail.h"
#include "core/base/line_buffer.h"

namespace nibble {
namespace {

constexpr size_t kMaxErrorBytes = 1024;
constexpr size_t kMaxBatchBytes = 16 << 20;  // of samples scored together; one may exceed it

std::string to_line(const Json& message) {
  return message.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

const Json& require(const Json& message, const char* key, bool (Json::*is_type)() const noexcept) {
  const auto found = message.is_object() ? message.find(key) : message.end();
  if (!message.is_object() || found == message.end() || !((*found).*is_type)()) {
    fail(ErrorCode::kInvalidArgument, "reward protocol: '{}' is missing or of the wrong type", key);
  }
  return *found;
}

ErrorCode error_code_of(const std::string& name) {
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    if (error_code_name(static_cast<ErrorCode>(code)) == name) return static_cast<ErrorCode>(code);
  }
  fail(ErrorCode::kInvalidArgument, "reward protocol: unknown error code '{}'", name);
}

void write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      fail(ErrorCode::kUnavailable, "reward worker: cannot write a reply: {}",
           std::strerror(errno));
    }
    bytes.remove_prefix(static_cast<size_t>(count));
  }
}

void answer(const Scorer& scorer, std::span<const RewardRequest> requests, int out_fd) {
  std::vector<ScoredText> samples;
  for (const RewardRequest& request : requests) {
    samples.push_back({request.response, &request.label});
  }
  std::string replies;
  const auto outcomes = scorer.score_all(samples);
  for (size_t i = 0; i < requests.size(); ++i) {
    replies += encode_reply({requests[i].id, outcomes[i]});
  }
  write_all(out_fd, replies);
}

}  // namespace

std::string encode_ready(const std::string& type) { return to_line({{"ready", type}}); }

std::string encode_request(int64_t id, std::string_view response, const Json& label) {
  return to_line({{"id", id}, {"response", response}, {"label", label}});
}

std::string encode_reply(const RewardReply& reply) {
  if (const auto* score = std::get_if<double>(&reply.outcome)) {
    return to_line({{"id", reply.id}, {"score", *score}});
  }
  const Error& error = std::get<Error>(reply.outcome);
  return to_line({{"id", reply.id},
                  {"code", error_code_name(error.code())},
                  {"error", std::string(error.what()).substr(0, kMaxErrorBytes)}});
}

void expect_ready(std::string_view line) {
  require(parse_json(line, "reward worker"), "ready", &Json::is_string);
}

RewardRequest decode_request(std::string_view line) {
  Json message = parse_json(line, "reward request");
  RewardRequest request;
  request.id = require(message, "id", &Json::is_number_integer).get<int64_t>();
  request.response = require(message, "response", &Json::is_string).get<std::string>();
  if (!message.contains("label")) {
    fail(ErrorCode::kInvalidArgument, "reward protocol: 'label' is missing");
  }
  request.label = std::move(message["label"]);
  return request;
}

RewardReply decode_reply(std::string_view line) {
  const Json message = parse_json(line, "reward reply");
  const auto id = require(message, "id", &Json::is_number_integer).get<int64_t>();
  if (message.contains("score")) {
    // JSON has no infinities, and numbers beyond double do not parse.
    return {id, require(message, "score", &Json::is_number).get<double>()};
  }
  const auto code = require(message, "code", &Json::is_string).get<std::string>();
  const auto text = require(message, "error", &Json::is_string).get<std::string>();
  return {id, Error(error_code_of(code), text)};
}

int run_reward_worker(const std::string& argument, int in_fd, int out_fd) {
  const RewardSpec spec = parse_reward_argument(argument);
  const std::unique_ptr<Scorer> scorer = make_scorer(spec);
  write_all(out_fd, encode_ready(reward_parts_text(spec.parts)));
  LineBuffer lines(kMaxRequestBytes);
  std::vector<RewardRequest> batch;
  size_t batch_bytes = 0;
  char buffer[1 << 16];
  while (true) {
    while (const auto line = lines.next_line()) {
      batch.push_back(decode_request(*line));
      batch_bytes += line->size();
      if (batch.size() < scorer->max_batch() && batch_bytes < kMaxBatchBytes) continue;
      answer(*scorer, batch, out_fd);
      batch.clear();
      batch_bytes = 0;
    }
    // What came in one read is not kept waiting for more.
    if (!batch.empty()) answer(*scorer, batch, out_fd);
    batch.clear();
    batch_bytes = 0;
    const ssize_t count = ::read(in_fd, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      fail(ErrorCode::kUnavailable, "reward worker: cannot read: {}", std::strerror(errno));
    }
    if (count == 0) return 0;
    lines.append({buffer, static_cast<size_t>(count)});
  }
}

}  // namespace nibble
