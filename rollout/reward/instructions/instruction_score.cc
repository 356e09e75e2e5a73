#include "rollout/reward/instructions/instruction_score.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <set>
#include <string>

#include "core/base/fail.h"
#include "rollout/reward/instructions/instruction_args.h"
#include "rollout/reward/instructions/text_counts.h"
#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

using Args = InstructionArgs;

int64_t size_of(const auto& container) { return static_cast<int64_t>(container.size()); }

bool number_of_words(std::string_view text, const Args& args) {
  return args.compare(size_of(words_of(text)), "relation", args.number("num_words"));
}

bool number_of_sentences(std::string_view text, const Args& args) {
  return args.compare(count_sentences(text), "relation", args.number("num_sentences"));
}

bool number_of_paragraphs(std::string_view text, const Args& args) {
  return size_of(paragraphs_of(text)) == args.number("num_paragraphs");
}

bool word_count_range(std::string_view text, const Args& args) {
  const int64_t count = size_of(words_of(text));
  return count >= args.number("min_words") && count <= args.number("max_words");
}

bool unique_words(std::string_view text, const Args& args) {
  const std::string lower = lower_text(text);
  const auto words = words_of(lower);
  const std::set<std::string_view> distinct(words.begin(), words.end());
  return size_of(distinct) >= args.number("N");
}

bool count_of_numbers(std::string_view text, const Args& args) {
  int64_t count = 0;
  for (const std::string_view word : words_of(text)) {
    count += std::all_of(word.begin(), word.end(), is_ascii_digit) ? 1 : 0;
  }
  return count == args.number("N");
}

bool has_keywords(std::string_view text, const Args& args) {
  const std::string lower = lower_text(text);
  const auto keywords = args.texts("keywords");
  return std::all_of(keywords.begin(), keywords.end(), [&](const std::string& keyword) {
    return lower.find(lower_text(keyword)) != std::string::npos;
  });
}

bool has_no_forbidden_words(std::string_view text, const Args& args) {
  const std::string lower = lower_text(text);
  const auto words = args.texts("forbidden_words");
  return std::none_of(words.begin(), words.end(), [&](const std::string& word) {
    return count_phrase(lower, lower_text(word)) > 0;
  });
}

bool keyword_frequency(std::string_view text, const Args& args) {
  const int64_t count = count_phrase(lower_text(text), lower_text(args.text("keyword")));
  return args.compare(count, "relation", args.number("frequency"));
}

bool letter_frequency(std::string_view text, const Args& args) {
  const std::string lower = lower_text(text);
  const std::string letter = lower_text(args.text("letter"));
  const int64_t count = letter.size() == 1 ? std::count(lower.begin(), lower.end(), letter[0])
                                           : count_phrase(lower, letter);
  return args.compare(count, "let_relation", args.number("let_frequency"));
}

bool has_no_comma(std::string_view text, const Args&) {
  return text.find(',') == std::string_view::npos;
}

bool is_upper_case(std::string_view text, const Args&) {
  return std::any_of(text.begin(), text.end(), is_ascii_letter) &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return std::islower(c); });
}

bool is_lower_case(std::string_view text, const Args&) {
  return std::any_of(text.begin(), text.end(), is_ascii_letter) &&
         std::none_of(text.begin(), text.end(), [](unsigned char c) { return std::isupper(c); });
}

bool capital_word_frequency(std::string_view text, const Args& args) {
  int64_t count = 0;
  for (const std::string_view word : words_of(text)) {
    const bool has_letter = std::any_of(word.begin(), word.end(), is_ascii_letter);
    count += has_letter && std::none_of(word.begin(), word.end(),
                                        [](unsigned char c) { return std::islower(c); });
  }
  return args.compare(count, "capital_relation", args.number("capital_frequency"));
}

bool ends_with_phrase(std::string_view text, const Args& args) {
  const std::string lower = lower_text(trim(text));
  std::string_view end = lower;
  if (end.ends_with('"')) end.remove_suffix(1);
  const std::string phrase = lower_text(args.text("end_phrase"));
  return end.ends_with(trim(phrase));
}

bool is_quoted(std::string_view text, const Args&) {
  const std::string_view inner = trim(text);
  return inner.size() > 1 && inner.front() == '"' && inner.back() == '"';
}

bool is_json(std::string_view text, const Args&) {
  std::string_view inner = trim(text);
  for (const std::string_view fence : {"```json", "```Json", "```JSON", "```"}) {
    if (inner.starts_with(fence)) inner.remove_prefix(fence.size());
  }
  if (inner.ends_with("```")) inner.remove_suffix(3);
  try {
    (void)parse_json(trim(inner), "response");
    return true;
  } catch (const Error&) {
    return false;  // text that is no JSON is an answer, not a failure
  }
}

bool number_of_bullets(std::string_view text, const Args& args) {
  return count_bullets(text) == args.number("num_bullets");
}

bool has_title(std::string_view text, const Args&) { return count_enclosed(text, "<<", ">>") > 0; }

bool number_of_highlights(std::string_view text, const Args& args) {
  // "**x**" is one highlight, not an empty one and another.
  std::string single(text);
  const auto end = std::unique(single.begin(), single.end(),
                               [](char a, char b) { return a == '*' && b == '*'; });
  single.erase(end, single.end());
  return count_enclosed(single, "*", "*") >= args.number("num_highlights");
}

bool number_of_placeholders(std::string_view text, const Args& args) {
  return count_enclosed(text, "[", "]") >= args.number("num_placeholders");
}

bool has_postscript(std::string_view text, const Args& args) {
  return lower_text(text).find(lower_text(args.text("postscript_marker"))) != std::string::npos;
}

bool number_of_sections(std::string_view text, const Args& args) {
  const std::string section = args.text("section_spliter");
  int64_t count = 0;
  for (size_t at = text.find(section); at != std::string_view::npos;
       at = text.find(section, at + section.size())) {
    const size_t number = text.find_first_not_of(" \t", at + section.size());
    count += number != std::string_view::npos && is_ascii_digit(text[number]) ? 1 : 0;
  }
  return count >= args.number("num_sections");
}

bool has_no_white_space(std::string_view text, const Args&) {
  return std::none_of(text.begin(), text.end(), [](unsigned char c) { return std::isspace(c); });
}

struct Instruction {
  std::string_view id;
  bool (*is_followed)(std::string_view, const Args&);
};

// Sorted by id.
constexpr std::array<Instruction, 24> kInstructions = {{
    {"change_case:capital_word_frequency", capital_word_frequency},
    {"change_case:english_capital", is_upper_case},
    {"change_case:english_lowercase", is_lower_case},
    {"count:numbers", count_of_numbers},
    {"count:unique_word_count", unique_words},
    {"count:word_count_range", word_count_range},
    {"detectable_content:number_placeholders", number_of_placeholders},
    {"detectable_content:postscript", has_postscript},
    {"detectable_format:json_format", is_json},
    {"detectable_format:multiple_sections", number_of_sections},
    {"detectable_format:number_bullet_lists", number_of_bullets},
    {"detectable_format:number_highlighted_sections", number_of_highlights},
    {"detectable_format:title", has_title},
    {"format:no_whitespace", has_no_white_space},
    {"keywords:existence", has_keywords},
    {"keywords:forbidden_words", has_no_forbidden_words},
    {"keywords:frequency", keyword_frequency},
    {"keywords:letter_frequency", letter_frequency},
    {"length_constraints:number_paragraphs", number_of_paragraphs},
    {"length_constraints:number_sentences", number_of_sentences},
    {"length_constraints:number_words", number_of_words},
    {"punctuation:no_comma", has_no_comma},
    {"startend:end_checker", ends_with_phrase},
    {"startend:quotation", is_quoted},
}};

bool follows(std::string_view response, const std::string& id, const Json& kwargs) {
  const auto* found = std::find_if(kInstructions.begin(), kInstructions.end(),
                                   [&](const Instruction& x) { return x.id == id; });
  if (found == kInstructions.end()) {
    fail(ErrorCode::kUnimplemented, "instruction '{}' is not checked here", id);
  }
  const bool is_followed = found->is_followed(response, Args(id, kwargs));
  return is_followed && !trim(response).empty();
}

}  // namespace

std::vector<std::string_view> instruction_ids() {
  std::vector<std::string_view> ids;
  for (const Instruction& instruction : kInstructions) ids.push_back(instruction.id);
  return ids;
}

double instruction_score(std::string_view response, const Json& label) {
  constexpr size_t kMaxInstructions = 64;
  const bool is_list = label.is_object() && label.contains("instruction_id_list") &&
                       label["instruction_id_list"].is_array();
  if (!is_list || label["instruction_id_list"].empty() ||
      label["instruction_id_list"].size() > kMaxInstructions) {
    fail(ErrorCode::kInvalidArgument,
         "the label has no instruction_id_list of 1 to {} instructions", kMaxInstructions);
  }
  const Json& ids = label["instruction_id_list"];
  const Json kwargs = label.value("kwargs", Json::array());
  const bool is_matched =
      kwargs.is_array() && (kwargs.empty() || kwargs.size() == ids.size()) &&
      std::all_of(kwargs.begin(), kwargs.end(), [](const Json& x) { return x.is_object(); }) &&
      std::all_of(ids.begin(), ids.end(), [](const Json& x) { return x.is_string(); });
  if (!is_matched) {
    fail(ErrorCode::kInvalidArgument,
         "kwargs of the label is no list of {} objects, one for each instruction", ids.size());
  }
  bool follows_all = true;
  for (size_t i = 0; i < ids.size(); ++i) {
    // Each is looked at, so that a wrong argument shows whatever the response says.
    const Json args = kwargs.empty() ? Json::object() : kwargs[i];
    follows_all = follows(response, ids[i].get<std::string>(), args) && follows_all;
  }
  return follows_all ? 1 : 0;
}

}  // namespace nibble
