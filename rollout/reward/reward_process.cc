#include "rollout/reward/reward_process.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/fail.h"
#include "rollout/reward/scorer.h"

namespace nibble {
namespace {

constexpr int kMaxAttempts = 2;
constexpr size_t kMaxUnsentBytes = 1 << 20;  // one request may exceed it

RewardProcessOptions validated(RewardProcessOptions options) {
  if (options.command.empty() || options.start_timeout.count() <= 0 ||
      options.sample_timeout.count() <= 0 || options.max_in_flight <= 0) {
    fail(ErrorCode::kInvalidArgument,
         "reward process: want a command, time-outs > 0 and max_in_flight > 0, got {} words, {} "
         "ms, {} ms, {}",
         options.command.size(), options.start_timeout.count(), options.sample_timeout.count(),
         options.max_in_flight);
  }
  return options;
}

Error too_long(size_t num_bytes) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("the response has {} bytes; at most {} are scored", num_bytes,
                      kMaxResponseBytes)};
}

}  // namespace

struct RewardProcess::Batch {
  std::span<const RewardSample> samples;
  std::vector<RewardOutcome> outcomes;  // of samples
  std::vector<size_t> pending;          // samples that go to the worker, in order
  size_t first = 0;                     // of pending: whose turn it is; those before are done
  size_t next = 0;                      // of pending: the first one not sent
  int64_t id_offset = 0;                // pending[i] travels under id_offset + i
  int num_failures = 0;                 // of the sample whose turn it is
  std::string unsent;                   // bytes of requests the socket had no room for
  Deadline deadline = Deadline::after(std::chrono::milliseconds(0));  // of whose turn it is
};

RewardProcess::RewardProcess(RewardProcessOptions options)
    : options_(validated(std::move(options))) {
  start();
}

std::vector<RewardOutcome> RewardProcess::score(std::span<const RewardSample> samples) {
  const RewardOutcome none = Error(ErrorCode::kInternal, "the sample was not scored");
  Batch batch{samples, std::vector<RewardOutcome>(samples.size(), none)};
  for (size_t i = 0; i < samples.size(); ++i) {
    if (samples[i].response.size() <= kMaxResponseBytes) {
      batch.pending.push_back(i);
    } else {
      batch.outcomes[i] = too_long(samples[i].response.size());
    }
  }
  batch.id_offset = std::exchange(next_id_, next_id_ + static_cast<int64_t>(samples.size()));
  batch.deadline = Deadline::after(options_.sample_timeout);
  while (batch.first < batch.pending.size()) {
    try {
      exchange(batch);
    } catch (const Error& error) {
      recover(batch, error);
    }
  }
  return std::move(batch.outcomes);
}

void RewardProcess::start() {
  worker_ = std::make_unique<LimitedProcess>(options_.command, options_.limits);
  lines_.clear();
  const Deadline deadline = Deadline::after(options_.start_timeout);
  try {
    while (true) {
      wait(/*wants_to_send=*/false, deadline, "become ready");
      if (const auto line = lines_.next_line()) return expect_ready(*line);
    }
  } catch (const Error& error) {
    const std::string end = worker_->stop();
    worker_.reset();
    const bool is_late = error.code() == ErrorCode::kDeadlineExceeded;
    fail(is_late ? ErrorCode::kDeadlineExceeded : ErrorCode::kUnavailable,
         "cannot start the reward worker '{}': {} ({})", options_.command[0], error.what(),
         is_late ? "killed" : end);
  }
}

/// One step of a batch: sends what fits, waits for bytes, takes the replies in them.
void RewardProcess::exchange(Batch& batch) {
  if (!worker_) fail(ErrorCode::kUnavailable, "the reward worker does not run");
  send_ahead(batch);
  wait(!batch.unsent.empty(), batch.deadline, "score a sample");
  receive(batch);
}

void RewardProcess::send_ahead(Batch& batch) {
  while (batch.next < batch.pending.size() && batch.unsent.size() < kMaxUnsentBytes &&
         batch.next - batch.first < static_cast<size_t>(options_.max_in_flight)) {
    const RewardSample& sample = batch.samples[batch.pending[batch.next]];
    const int64_t id = batch.id_offset + static_cast<int64_t>(batch.next);
    batch.unsent += encode_request(id, sample.response, sample.label);
    ++batch.next;
  }
  while (!batch.unsent.empty()) {
    const ssize_t count =
        ::send(worker_->fd(), batch.unsent.data(), batch.unsent.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    // A dead worker may have left replies: they are read before its end is noticed.
    if (count < 0) return batch.unsent.clear();
    batch.unsent.erase(0, static_cast<size_t>(count));
  }
}

/// Until bytes have come into lines_ or the socket has room. `what` names the wait in errors.
void RewardProcess::wait(bool wants_to_send, Deadline deadline, const char* what) {
  const auto timeout_ms = std::min<int64_t>(deadline.remaining().count(), 1 << 30);
  pollfd poll_fd{worker_->fd(), static_cast<short>(wants_to_send ? POLLIN | POLLOUT : POLLIN), 0};
  const int num_ready = ::poll(&poll_fd, 1, static_cast<int>(timeout_ms));
  if (num_ready <= 0) {
    if (deadline.expired()) {
      fail(ErrorCode::kDeadlineExceeded, "the reward worker did not {} in time", what);
    }
    return;
  }
  if ((poll_fd.revents & ~POLLOUT) == 0) return;
  char buffer[1 << 16];
  const ssize_t count = ::recv(worker_->fd(), buffer, sizeof buffer, 0);
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (count <= 0) fail(ErrorCode::kUnavailable, "the reward worker ended");
  lines_.append({buffer, static_cast<size_t>(count)});
}

void RewardProcess::receive(Batch& batch) {
  while (batch.first < batch.next) {
    const auto line = lines_.next_line();
    if (!line) break;
    RewardReply reply = decode_reply(*line);
    const int64_t expected = batch.id_offset + static_cast<int64_t>(batch.first);
    if (reply.id != expected) {
      fail(ErrorCode::kInvalidArgument, "reply {} came where {} was due", reply.id, expected);
    }
    batch.outcomes[batch.pending[batch.first]] = std::move(reply.outcome);
    ++batch.first;
    batch.num_failures = 0;
    batch.deadline = Deadline::after(options_.sample_timeout);
  }
  if (batch.deadline.expired()) {
    fail(ErrorCode::kDeadlineExceeded, "the reward worker did not score a sample in time");
  }
}

/// Replaces the worker, and gives up on the sample whose turn it was if it failed before.
void RewardProcess::recover(Batch& batch, const Error& cause) {
  const std::string end = worker_ ? worker_->stop() : "it did not run";
  worker_.reset();
  if (++batch.num_failures == kMaxAttempts) {
    const bool is_late = cause.code() == ErrorCode::kDeadlineExceeded;
    batch.outcomes[batch.pending[batch.first]] =
        Error(is_late ? ErrorCode::kDeadlineExceeded : ErrorCode::kUnavailable,
              is_late ? fmt::format("no score within {} ms, {} times",
                                    options_.sample_timeout.count(), kMaxAttempts)
                      : fmt::format("the reward worker failed {} times on this sample: {} ({})",
                                    kMaxAttempts, cause.what(), end));
    ++batch.first;
    batch.num_failures = 0;
  }
  try {
    start();
    ++num_restarts_;
  } catch (const Error& error) {
    for (; batch.first < batch.pending.size(); ++batch.first) {
      batch.outcomes[batch.pending[batch.first]] = error;
    }
    return;
  }
  batch.unsent.clear();
  batch.next = batch.first;
  batch.id_offset = std::exchange(next_id_, next_id_ + static_cast<int64_t>(batch.samples.size()));
  batch.deadline = Deadline::after(options_.sample_timeout);
}

}  // namespace nibble
