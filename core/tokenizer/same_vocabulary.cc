#include "core/tokenizer/same_vocabulary.h"

#include <algorithm>
#include <cstdint>

#include "core/base/fail.h"
#include "core/checkpoint/hf_directory.h"
#include "core/spec/model_config.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {
namespace {

int64_t vocabulary_of(const std::filesystem::path& directory) {
  return parse_model_config(read_hf_config(directory), (directory / "config.json").string()).vocab;
}

}  // namespace

void check_same_vocabulary(const std::string& role, const std::filesystem::path& directory,
                           const std::filesystem::path& model) {
  const int64_t own = vocabulary_of(directory), wanted = vocabulary_of(model);
  if (own != wanted) {
    fail(ErrorCode::kInvalidArgument,
         "'{}' has vocab_size = {}, the model '{}' {}; {} needs the vocabulary of the model",
         directory.string(), own, model.string(), wanted, role);
  }
  const auto file = [](const std::filesystem::path& path) { return path / "tokenizer.json"; };
  if (!std::filesystem::exists(file(directory)) || !std::filesystem::exists(file(model))) return;
  const Tokenizer theirs = Tokenizer::from_file(file(directory));
  const Tokenizer ours = Tokenizer::from_file(file(model));
  for (int32_t id = 0; id < std::max(theirs.vocab_size(), ours.vocab_size()); ++id) {
    if (theirs.id_to_token_bytes(id) == ours.id_to_token_bytes(id)) continue;
    fail(ErrorCode::kInvalidArgument,
         "'{}' has another tokenizer than the model '{}': token {} differs; {} needs the same one",
         directory.string(), model.string(), id, role);
  }
}

}  // namespace nibble
