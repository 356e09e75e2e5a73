#pragma once

#include <gtest/gtest.h>

#include <string>

#include "rollout/server/request_error.h"
#include "rollout/server/served_model.h"

namespace nibble {

/// A tokenizer of the fixtures as a server sees it: 512 ids, <|im_end|> (486) ends an answer.
class ServedFixture {
 public:
  ServedFixture() {
    model.name = "tiny";
    model.tokenizer = &tokenizer_;
    model.encoder = &encoder_;
    model.stop_ids = {486};
    model.vocab = 512;
    model.max_tokens = 64;
    model.max_samples = 8;
    model.max_prompt_bytes = most_text_bytes(tokenizer_, model.max_tokens);
  }
  ServedModel model;

 private:
  Tokenizer tokenizer_ = Tokenizer::from_directory(std::string(NIBBLE_SOURCE_DIR) +
                                                   "/tests/oracles/models/dense_tied/bf16");
  PromptEncoder encoder_{tokenizer_, "tiny"};
};

/// What `body` throws as RequestError: "STATUS FIELD".
template <typename Body>
std::string refusal_of(Body&& body) {
  try {
    body();
  } catch (const RequestError& error) {
    return std::to_string(error.status()) + " " + error.field();
  }
  return "accepted";
}

}  // namespace nibble
