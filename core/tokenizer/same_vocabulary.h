#pragma once

#include <filesystem>
#include <string>

namespace nibble {

/// Whether `role` ("a draft model", "a teacher") of one Hugging Face directory may be asked about
/// the tokens of the model of another one: the vocabulary must be the same, and every token of it
/// where both have a tokenizer.json. Throws Error{kInvalidArgument} with the first difference; also
/// for a directory that holds no model.
void check_same_vocabulary(const std::string& role, const std::filesystem::path& directory,
                           const std::filesystem::path& model);

}  // namespace nibble
