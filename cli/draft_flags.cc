#include "cli/draft_flags.h"

#include <CLI/CLI.hpp>

#include "core/base/fail.h"

namespace nibble {

void add_draft_flags(CLI::App& command, DraftFlags& flags, LookUp look_up) {
  const std::string how = look_up == LookUp::kBeside ? "beside look-up" : "alone, without look-up";
  command.add_option("--draft-model", flags.draft_model,
                     "Hugging Face directory, BF16 or INT4, of a small model with the same "
                     "tokenizer that guesses tokens " +
                         how + " (with --max-draft-tokens)");
  command.add_option("--draft-head", flags.draft_head,
                     "directory of a head on the model's hidden states (MTP, EAGLE) that guesses "
                     "tokens " +
                         how + " (with --max-draft-tokens); random: one to be trained");
}

void check_draft_flags(const DraftFlags& flags, int64_t max_draft_tokens) {
  if (!flags.draft_model.empty() && !flags.draft_head.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--draft-model '{}' and --draft-head '{}' do not guess together; give one of them",
         flags.draft_model.string(), flags.draft_head);
  }
  if (max_draft_tokens > 0) return;
  const auto refuse = [](const char* flag, const std::string& value) {
    if (value.empty()) return;
    fail(ErrorCode::kInvalidArgument,
         "{} '{}' guesses nothing without --max-draft-tokens; give both, such as "
         "--max-draft-tokens 4",
         flag, value);
  };
  refuse("--draft-model", flags.draft_model.string());
  refuse("--draft-head", flags.draft_head);
}

Drafts load_drafts(const LoadedModel& model, const ModelFlags& model_flags,
                   const DraftFlags& flags) {
  Drafts drafts;
  if (!flags.draft_model.empty()) {
    drafts.model = load_draft_model("--draft-model", flags.draft_model, model_flags.model);
  }
  if (!flags.draft_head.empty()) {
    drafts.head = load_draft_head("--draft-head", flags.draft_head, model.spec);
  }
  return drafts;
}

}  // namespace nibble
