#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/data/text_records.h"
#include "trainer/batching.h"

namespace nibble {

/// Where supervised records are, and how they become tokens.
struct RecordSource {
  std::filesystem::path train;
  std::filesystem::path eval;  ///< held out; empty: none
  RecordKeys keys;
  std::filesystem::path tokenizer;  ///< directory
  int64_t max_positions = 2048;     ///< longest record
};

/// One record as token ids; the loss counts every token of `response`.
struct TokenRecord {
  std::vector<int32_t> prompt;    ///< at least one token; of a text its first
  std::vector<int32_t> response;  ///< at least one; after a prompt it ends with the end token
  /// Tokens that training computes for it.
  int64_t computed_tokens() const {
    return static_cast<int64_t>(prompt.size() + response.size()) - 1;
  }
};

struct TokenRecords {
  std::vector<TokenRecord> train;
  std::vector<TokenRecord> eval;
};

/// Reads and tokenizes both files, on torch's threads. A prompt is encoded as a rollout worker
/// encodes it; its response as it is, and the tokenizer's eos_token behind it (without one, the
/// only stop id that config.json and generation_config.json name), unless it is there. A text is
/// encoded with the tokenizer's special tokens and gets no end. Throws Error{kInvalidArgument}
/// naming file and line of a record that is longer than max_positions or has nothing to learn, and
/// what read_text_records and Tokenizer throw.
TokenRecords load_token_records(const RecordSource& source);

/// One rank's part of a batch, balanced by computed tokens (balance_groups), in the batch's order.
/// The parts of all ranks together are the batch.
std::vector<const TokenRecord*> share_records(std::span<const TokenRecord* const> batch, int rank,
                                              int world);

/// Cuts records, in order, into micro-batches of at most `max_tokens` computed tokens, without
/// padding; a larger record gets one to itself. Advantages and rollout log-probabilities stay
/// empty.
std::vector<MicroBatch> make_record_batches(std::span<const TokenRecord* const> records,
                                            int64_t max_tokens);

}  // namespace nibble
