#pragma once

#include <filesystem>
#include <fstream>
#include <span>

#include "cli/eval_sets.h"
#include "cli/set_evaluation.h"

namespace nibble {

/// One JSON object on stdout: of a single set its figures, of several a list of them and their
/// mean.
void print_eval_json(const EvalFlags& flags, std::span<const EvalSet> sets,
                     std::span<const SetResult> results);
/// The same for people.
void print_eval(const EvalFlags& flags, std::span<const EvalSet> sets,
                std::span<const SetResult> results);

/// A file of JSON lines that results are appended to, one line for each set, as they come.
class EvalOutput {
 public:
  /// Opens `path`, so that what cannot be written is known before anything is sampled; empty: no
  /// file. Throws Error{kInvalidArgument}.
  explicit EvalOutput(const std::filesystem::path& path);
  /// Throws Error{kResourceExhausted} if the line could not be written.
  void append(const EvalFlags& flags, const EvalSet& set, const SetResult& result);

 private:
  const std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace nibble
