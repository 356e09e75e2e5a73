#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble {

/// A guess of a token that a sample will draw.
struct DraftToken {
  int32_t token = -1;
  /// Share of what the guess was made from that speaks for it, if all before it come true; (0, 1].
  float share = 0.0f;
  /// How much it was made from: 0 little, kMostEvidence much. With `share` it names the guesses
  /// whose fate is counted together (DraftPolicy).
  int evidence = 0;
  static constexpr int kMostEvidence = 3;
};

/// Guesses what running samples will draw next, so that one step can check several tokens of a
/// sample. A guess never changes what is drawn: a token is drawn as it would be without it, and
/// guesses that differ are thrown away. One thread.
class Drafter {
 public:
  virtual ~Drafter() = default;
  /// A request arrives; `drawn` are tokens that it brings with it.
  virtual void begin(uint64_t id, std::span<const int32_t> prompt,
                     std::span<const int32_t> drawn) = 0;
  /// The sample drew a token.
  virtual void extend(uint64_t id, int32_t token) = 0;
  /// The request ends. `is_whole`: by a stop or its length, not by an abort.
  virtual void end(uint64_t id, bool is_whole) = 0;
  /// Replaces `out` by at most `most` guesses of the next tokens, in order.
  virtual void propose(uint64_t id, int64_t most, std::vector<DraftToken>& out) = 0;
  /// Memory that it holds.
  virtual int64_t num_bytes() const = 0;
};

}  // namespace nibble
