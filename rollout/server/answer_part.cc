#include "rollout/server/answer_part.h"

namespace nibble {

void append_token(const Completion& completion, size_t at, std::vector<AnswerToken>& tokens) {
  AnswerToken& token = tokens.emplace_back();
  token.id = completion.tokens[at];
  token.log_prob = completion.log_probs[at];
  token.version = completion.versions[at];
  if (at < completion.plain_log_probs.size()) token.plain_log_prob = completion.plain_log_probs[at];
  if (at < completion.top_log_probs.size()) token.top = completion.top_log_probs[at];
}

}  // namespace nibble
