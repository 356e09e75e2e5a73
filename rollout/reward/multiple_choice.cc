#include "rollout/reward/multiple_choice.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "core/base/fail.h"
#include "rollout/reward/text/boxed.h"
#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

constexpr int kDefaultChoices = 4;
constexpr int kMaxChoices = 26;
constexpr size_t kNone = std::string_view::npos;

bool is_word_char(char c) {
  return is_ascii_letter(c) || is_ascii_digit(c) || c == '_' ||
         (static_cast<unsigned char>(c) & 0x80);
}

char upper(char c) { return static_cast<char>(std::toupper(static_cast<unsigned char>(c))); }

bool is_choice(char c, int num_choices) { return upper(c) >= 'A' && upper(c) < 'A' + num_choices; }

/// Whether the letter at `at` stands on its own.
bool stands_alone(std::string_view text, size_t at) {
  const bool begins = at == 0 || !is_word_char(text[at - 1]);
  return begins && (at + 1 == text.size() || !is_word_char(text[at + 1]));
}

std::optional<char> boxed_letter(std::string_view text, int num_choices) {
  auto content = last_boxed(text);
  if (!content) return std::nullopt;
  std::string_view inner = trim(*content);
  for (const std::string_view command : {"\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{"}) {
    if (inner.starts_with(command) && inner.ends_with('}')) {
      inner = trim(inner.substr(command.size(), inner.size() - command.size() - 1));
    }
  }
  if (inner.size() == 3 && inner[0] == '(' && inner[2] == ')') inner = inner.substr(1, 1);
  if (inner.size() != 1 || !is_choice(inner[0], num_choices)) return std::nullopt;
  return upper(inner[0]);
}

size_t skip(std::string_view text, size_t at, std::string_view characters) {
  return std::min(text.find_first_not_of(characters, at), text.size());
}

std::optional<char> named_letter(std::string_view text, int num_choices) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  std::optional<char> found;
  size_t found_at = 0;
  for (const std::string_view word : {"answer", "option", "choice"}) {
    for (size_t at = lower.find(word); at != kNone; at = lower.find(word, at + 1)) {
      constexpr std::string_view kSpace = " \t\n*";
      size_t next = skip(lower, at + word.size(), kSpace);
      if (lower.compare(next, 3, "is ") == 0 || lower.compare(next, 3, "is:") == 0) {
        next = skip(lower, next + 2, kSpace);
      }
      next = skip(lower, next, " \t\n*:($\\");
      if (next >= text.size() || !is_choice(text[next], num_choices)) continue;
      // "a" in lower case is a word.
      if (!stands_alone(text, next) || (text[next] == 'a' && next + 1 < text.size())) continue;
      if (next < found_at) continue;
      found = upper(text[next]);
      found_at = next;
    }
  }
  return found;
}

std::optional<char> last_capital(std::string_view text, int num_choices) {
  for (size_t at = text.size(); at-- > 0;) {
    const bool is_capital = text[at] >= 'A' && text[at] <= 'Z';
    if (is_capital && is_choice(text[at], num_choices) && stands_alone(text, at)) return text[at];
  }
  return std::nullopt;
}

/// A letter or a number from 0, as a letter.
char letter_of(const Json& answer) {
  if (answer.is_string()) {
    const std::string text = answer.get<std::string>();
    const std::string_view letter = trim(text);
    if (letter.size() == 1 && is_ascii_letter(letter[0])) return upper(letter[0]);
  }
  if (answer.is_number_integer() && answer >= 0 && answer < kMaxChoices) {
    return static_cast<char>('A' + answer.get<int>());
  }
  fail(ErrorCode::kInvalidArgument, "the label is {}; want a letter or the number of a choice",
       answer.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 100));
}

}  // namespace

std::optional<char> chosen_letter(std::string_view response, int num_choices) {
  constexpr std::string_view kThink = "</think>";
  if (const size_t at = response.rfind(kThink); at != kNone) {
    response.remove_prefix(at + kThink.size());
  }
  auto letter = boxed_letter(response, num_choices);
  if (!letter) letter = named_letter(response, num_choices);
  return letter ? letter : last_capital(response, num_choices);
}

double multiple_choice_score(std::string_view response, const Json& label) {
  const bool is_object = label.is_object() && label.contains("answer");
  const char right = letter_of(is_object ? label["answer"] : label);
  int num_choices = std::max(kDefaultChoices, right - 'A' + 1);
  if (is_object && label.contains("choices")) {
    const Json& choices = label["choices"];
    if (choices.is_array()) {
      num_choices = static_cast<int>(std::min<size_t>(choices.size(), kMaxChoices));
    } else if (choices.is_number_integer() && choices > 0 && choices <= kMaxChoices) {
      num_choices = choices.get<int>();
    } else {
      fail(ErrorCode::kInvalidArgument, "choices of the label is no list and no number up to {}",
           kMaxChoices);
    }
    if (right - 'A' >= num_choices) {
      fail(ErrorCode::kInvalidArgument, "the label {} is none of {} choices", right, num_choices);
    }
  }
  return chosen_letter(response, num_choices) == right ? 1 : 0;
}

}  // namespace nibble
