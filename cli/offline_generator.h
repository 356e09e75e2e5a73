#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/draft_flags.h"
#include "cli/model_flags.h"
#include "cli/text_codec.h"
#include "core/kernels/log_softmax.h"
#include "rollout/engine/engine.h"
#include "rollout/head_coach.h"

namespace nibble {

/// Flags of the commands that sample from a model.
struct SamplingFlags {
  ModelFlags model;
  std::filesystem::path tokenizer;  ///< empty: the model's
  int64_t max_new_tokens = 256;
  int64_t samples = 1;  ///< of each prompt
  kernels::SamplingParams sampling;
  int64_t seed = 0;
  std::vector<std::string> stop;
  int64_t max_running = 64;
  int64_t max_positions = 4096;  ///< prompt and response, less if the model takes less
  int64_t kv_tokens = 16384;
  int64_t max_draft_tokens = 0;
  DraftFlags draft;
  std::filesystem::path train_draft_head;  ///< where the trained head is written; empty: none is
};

/// Declares all of them. `flags` outlives the parse.
void add_sampling_flags(CLI::App& command, SamplingFlags& flags);

/// Throws Error{kInvalidArgument} naming a flag that is out of range.
void check_sampling_flags(const SamplingFlags& flags);

/// Samples prompts, as many at a time as fit, and gives the results back in order. Prompt number n
/// and its samples have the same random draws whatever else runs beside them. One thread; borrows
/// all that it is made of.
class OfflineGenerator {
 public:
  OfflineGenerator(const LoadedModel& model, const TextCodec& codec, const SamplingFlags& flags);

  /// Whether another prompt may be submitted now: the results waiting for their turn are bounded.
  bool has_room() const;
  /// Throws Error{kInvalidArgument} with `where` for a prompt that is empty, too long or not of
  /// the vocabulary.
  void submit(std::vector<int32_t> prompt, const std::string& where);
  bool has_work() const { return engine_->has_work(); }
  void step();
  /// The samples of the next prompt in order of submission, once all of them are there.
  std::optional<std::vector<Completion>> take_next();
  /// Writes the draft head that was trained meanwhile, if one was.
  void finish() const;

 private:
  struct Group {
    int64_t missing = 0;
    std::vector<Completion> samples;
  };

  const TextCodec& codec_;
  const SamplingFlags& flags_;
  const int64_t max_position_;  // of the model
  const int64_t limit_;         // positions that one sequence may take
  const int64_t vocab_;
  std::shared_ptr<const ops::WeightSource> weights_;  // shared: as the engine's
  std::unique_ptr<HeadCoach> coach_;                  // null: no head is trained
  std::unique_ptr<Engine> engine_;                    // after what it borrows from
  std::deque<Group> groups_;                          // submitted and not taken
  uint64_t first_prompt_ = 0;                         // number of groups_.front()
};

}  // namespace nibble
