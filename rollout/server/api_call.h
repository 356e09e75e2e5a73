#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "rollout/server/answer_text.h"
#include "rollout/server/api_request.h"
#include "rollout/server/engine_job.h"
#include "rollout/server/http_message.h"
#include "rollout/server/response_codec.h"
#include "rollout/server/server_metrics.h"

namespace nibble {

/// One request that the engine works on: hears of its tokens on the engine's thread, makes the
/// answer of them on a worker's. Borrows model and metrics, which outlive it.
class ApiCall final : public JobListener, public std::enable_shared_from_this<ApiCall> {
 public:
  ApiCall(ApiRequest request, const ServedModel& model, ServerMetrics& metrics, std::string id,
          std::shared_ptr<HttpReply> reply);

  /// What the engine is to do. `seed` is for requests without one.
  EngineJob job(uint64_t random_seed, Deadline deadline);
  /// The job was accepted: a stream begins. On a worker's thread, before any part of the answer.
  void begin();
  /// The request was refused instead.
  void refuse(const HttpResponse& response);

  void token_drawn(size_t sample, const Completion& so_far) override;
  void sample_done(size_t sample, Completion done) override;
  void prompt_scored(size_t prompt, std::vector<GivenToken> tokens) override;
  void failed(const Error& error) override;

 private:
  struct Answer {
    AnswerPart part;  // whole, or what a stream has not sent yet
    std::unique_ptr<AnswerText> text;
    int64_t prompt_characters = 0;  // before its text, with echo
    bool has_begun = false;         // in a stream
    bool is_done = false;
  };
  // Of the engine's thread.
  struct Progress {
    size_t num_told = 0;  // tokens handed to a worker
    bool has_first = false;
    double first_ms = 0;
  };

  void add_tokens(size_t sample, std::vector<AnswerToken> tokens);
  void finish_sample(size_t sample, Completion& done);
  void send_part(Answer& answer);
  void add_prompts();
  void finish_if_done();
  void fail_with(int status, const std::string& message, Outcome outcome);
  void count(Outcome outcome);
  bool is_streaming() const { return request_.wants_stream; }

  const ApiRequest request_;
  const ServedModel& model_;
  ServerMetrics& metrics_;
  const ResponseCodec codec_;
  const std::string id_;
  const std::shared_ptr<HttpReply> reply_;  // shared: with the server that fills it
  const Stopwatch since_arrival_;

  std::vector<Progress> progress_;  // of the engine's thread

  // Of the reply's worker, one task after another.
  std::vector<Answer> answers_;
  std::vector<std::vector<GivenToken>> scored_;  // by prompt
  Usage usage_;
  int64_t num_missing_ = 0;  // samples and prompts
  bool is_over_ = false;
};

}  // namespace nibble
