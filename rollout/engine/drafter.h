#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

class DraftPolicy;
struct GenerateRequest;
struct StepPlan;

/// A guess of a token that a sample will draw.
struct DraftToken {
  int32_t token = -1;
  /// Share of what the guess was made from that speaks for it, or the probability that a model gave
  /// it, if all before it come true; (0, 1].
  float share = 0.0f;
  /// How much it was made from: 0 little, kMostEvidence much; or kFromModel. With `share` it names
  /// the guesses whose fate is counted together (DraftPolicy).
  int evidence = 0;
  static constexpr int kMostEvidence = 3;
  static constexpr int kFromModel = 4;
};

/// A sample that a step decodes, and guesses of what it draws next.
struct DraftQuery {
  uint64_t id = 0;
  int64_t most = 0;                 ///< guesses that are wanted at most
  std::vector<DraftToken> guesses;  ///< the answer, in order
};

/// What a step asks for, of all its samples at once.
struct DraftRound {
  std::span<DraftQuery> queries;  ///< no sample twice
  int64_t num_samples = 0;        ///< that the step decodes
  int64_t room = 0;               ///< guesses that the step has room for, in all
};

/// Guesses what running samples will draw next, so that one step can check several tokens of a
/// sample. A guess never changes what is drawn: a token is drawn as it would be without it, and
/// guesses that differ are thrown away. One thread.
class Drafter {
 public:
  virtual ~Drafter() = default;
  /// A request arrives. Its prompt, and tokens that it brings with it, are given beside it.
  virtual void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
                     std::span<const int32_t> drawn) = 0;
  /// The sample drew a token.
  virtual void extend(uint64_t id, int32_t token) = 0;
  /// The request ends. `is_whole`: by a stop or its length, not by an abort.
  virtual void end(uint64_t id, bool is_whole) = 0;
  /// Answers the queries that have no guesses yet, as many as it can. A drafter whose guesses cost
  /// time asks `policy` which of them are worth it, and tells it what they took.
  virtual void propose(const DraftRound& round, DraftPolicy& policy) = 0;
  /// A step is planned: names the rows whose final hidden states it wants to observe
  /// (StepPlan::hidden_rows), if it guesses from these.
  virtual void ask(StepPlan& /*plan*/) {}
  /// The step was computed and what it drew accepted: each span says how much of it is kept.
  virtual void observe(const StepPlan& /*plan*/) {}
  /// Host memory that it holds.
  virtual int64_t num_bytes() const = 0;
};

}  // namespace nibble
