#include "rollout/reward/token_f1.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "core/base/fail.h"
#include "rollout/reward/text/label_text.h"
#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

double f1(const std::vector<std::string>& given, const std::vector<std::string>& right) {
  if (given.empty() || right.empty()) return given.empty() && right.empty() ? 1 : 0;
  std::map<std::string_view, int64_t> left;
  for (const std::string& word : right) ++left[word];
  int64_t shared = 0;
  for (const std::string& word : given) {
    const auto found = left.find(word);
    if (found == left.end() || found->second == 0) continue;
    --found->second;
    ++shared;
  }
  return 2.0 * static_cast<double>(shared) / static_cast<double>(given.size() + right.size());
}

}  // namespace

std::vector<std::string> squad_words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty() && word != "a" && word != "an" && word != "the") words.push_back(word);
    word.clear();
  };
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isspace(byte) != 0) {
      end_word();
    } else if (std::ispunct(byte) == 0) {
      word += static_cast<char>(std::tolower(byte));
    }
  }
  end_word();
  return words;
}

double token_f1(std::string_view response, const Json& label) {
  const auto given = squad_words(response);
  if (!label.is_array()) return f1(given, squad_words(label_text(label)));
  if (label.empty()) fail(ErrorCode::kInvalidArgument, "the label is an empty list");
  double best = 0;
  for (const Json& text : label) best = std::max(best, f1(given, squad_words(label_text(text))));
  return best;
}

}  // namespace nibble
