#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

/// What the server-sent events of one /v1/completions answer have said so far.
class CompletionStream {
 public:
  /// Takes the next bytes; returns how many parts of the answer were in them. Throws
  /// Error{kDataLoss} for what is no such stream or has a line of more than 1 MiB,
  /// Error{kUnavailable} with the message of an error that the server reports.
  int64_t push(std::string_view bytes);

  bool has_ended() const { return has_ended_; }          ///< [DONE] has come
  int64_t num_tokens() const { return num_tokens_; }     ///< by the server's count; -1: not said
  const std::string& text() const { return text_; }      ///< of the first choice
  const std::string& reason() const { return reason_; }  ///< why it ended; empty: not said

 private:
  bool take_line(std::string_view line);

  std::string line_;  // what has come of the next one
  bool has_ended_ = false;
  int64_t num_tokens_ = -1;
  std::string text_;
  std::string reason_;
};

}  // namespace nibble
