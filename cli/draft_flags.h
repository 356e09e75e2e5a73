#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "cli/model_flags.h"
#include "rollout/draft_head.h"
#include "rollout/draft_model.h"
#include "rollout/engine/head_examples.h"

namespace nibble {

/// Whether tokens are guessed by look-up as well, where a draft model or head guesses.
enum class LookUp { kBeside, kNever };

/// What guesses tokens besides look-up: one of both, or nothing.
struct DraftFlags {
  std::filesystem::path draft_model;  ///< directory; empty: none
  std::string draft_head;             ///< directory, or "random"; empty: none
};

/// Declares --draft-model and --draft-head. `flags` outlives the parse.
void add_draft_flags(CLI::App& command, DraftFlags& flags, LookUp look_up = LookUp::kBeside);

/// Throws Error{kInvalidArgument} if both are given, or one and nothing to guess.
void check_draft_flags(const DraftFlags& flags, int64_t max_draft_tokens);

/// The same in memory.
struct Drafts {
  std::shared_ptr<DraftModel> model;      // shared: with the engine that guesses with it
  std::shared_ptr<const DraftHead> head;  // shared: as the model, and with who trains it
  HeadExamples* examples = nullptr;       ///< what a head can be trained with goes there
  LookUp look_up = LookUp::kBeside;
};
/// Throws Error naming the flag and what is wrong.
Drafts load_drafts(const LoadedModel& model, const ModelFlags& model_flags,
                   const DraftFlags& flags);

}  // namespace nibble
