#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "rollout/engine/drafter.h"
#include "rollout/engine/prompt_corpus.h"

namespace nibble {

/// Guesses from what stood after the same tokens before: in the prompt, in the sample itself, in
/// the other samples of its prompt, and in those of earlier epochs. Costs no model. Method: suffix
/// lookup with votes, as in SuffixDecoding (arXiv 2411.04975), kept per prompt.
class LookupDrafter final : public Drafter {
 public:
  struct Limits {
    int64_t max_tokens = 8'000'000;   ///< kept in all; prompts that were not used longest go first
    int64_t samples_per_prompt = 32;  ///< finished ones
  };
  explicit LookupDrafter(Limits limits) : limits_(limits) {}
  LookupDrafter() : LookupDrafter(Limits()) {}

  void begin(const GenerateRequest& request, std::span<const int32_t> prompt,
             std::span<const int32_t> drawn) override;
  void extend(uint64_t id, int32_t token) override;
  void end(uint64_t id, bool is_whole) override;
  void propose(const DraftRound& round, DraftPolicy& policy) override;
  int64_t num_bytes() const override;

 private:
  struct Entry {
    explicit Entry(std::span<const int32_t> prompt) : corpus(prompt) {}
    PromptCorpus corpus;
    std::list<const std::vector<int32_t>*>::iterator use;  // in uses_
  };
  struct Live {
    Entry* entry;
    int32_t sample;
  };
  void drop_oldest();

  const Limits limits_;
  std::map<std::vector<int32_t>, std::unique_ptr<Entry>> entries_;  // by prompt
  std::list<const std::vector<int32_t>*> uses_;  // keys of entries_, the last used last
  std::unordered_map<uint64_t, Live> live_;
  int64_t num_tokens_ = 0;
};

}  // namespace nibble
