#include "rollout/reward/math/unit_words.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <vector>

#include "rollout/reward/math/text_scan.h"

namespace nibble::math {
namespace {

// Each may end in s or es. Letters alone count too: "5 m", "3s".
constexpr std::array<std::string_view, 98> kWords = {
    "mm",      "cm",     "dm",      "m",        "km",     "mile",    "inch",
    "inches",  "feet",   "ft",      "yard",     "meter",  "metre",   "mtr",
    "mt",      "square", "sq",      "sq m",     "sq . m", "sq inch", "m square",
    "cubic",   "cube",   "cc",      "cu cm",    "cu . m", "cm 2",    "acre",
    "hectare", "rd",     "liter",   "litre",    "l",      "lt",      "gal",
    "gallon",  "g",      "gm",      "kg",       "pound",  "lb",      "s",
    "sec",     "second", "min",     "minute",   "h",      "hr",      "hour",
    "day",     "month",  "year",    "yr",       "am",     "pm",      "noon",
    "mph",     "kmph",   "kmh",     "degree",   "deg",    "ohm",     "cent",
    "rs",      "rs .",   "rupee",   "unit",     "digit",  "number",  "integerpoint",
    "point",   "edge",   "student", "man",      "men",    "woman",   "women",
    "soldier", "monkey", "toy",     "coin",     "apple",  "pie",     "meal",
    "tile",    "mark",   "way",     "multiple", "ratio",  "prime",   "rounds",
    "per",     "by",     "t",       "c",        "d",      "o",       "st"};
constexpr std::array<std::string_view, 20> kMoreWords = {
    "th",   "east", "west", "rise", "gain", "loss", "profit", "excess", "increase",  "decrease",
    "more", "less", "are",  "pure", "ab",   "bc",   "mp",     "minw",   "no change", "Surface"};

/// Where a value ends that `text` gives in one of the words; 0 if it does not.
size_t end_before_unit(std::string_view text, std::string_view word) {
  for (const std::string_view plural : {"", "s", "es"}) {
    if (!text.ends_with(plural)) continue;
    const std::string_view singular = text.substr(0, text.size() - plural.size());
    if (!singular.ends_with(word)) continue;
    size_t end = singular.size() - word.size();
    size_t before = end;
    while (before > 0 && is_space(text[before - 1])) --before;
    if (before > 0 && (is_ascii_digit(text[before - 1]) || text[before - 1] == '}')) return before;
    if (before < end) return before + 1;  // the space itself stays
  }
  return 0;
}

std::string without_word(const std::string& text) {
  std::string_view trimmed = text;
  while (!trimmed.empty() && is_space(trimmed.back())) trimmed.remove_suffix(1);
  size_t shortest = 0;
  const auto look = [&](std::string_view word) {
    const size_t end = end_before_unit(trimmed, word);
    if (end > 0 && (shortest == 0 || end < shortest)) shortest = end;
  };
  for (const std::string_view word : kWords) look(word);
  for (const std::string_view word : kMoreWords) look(word);
  return shortest > 0 ? text.substr(0, shortest) : text;
}

/// Drops \text{..} that reaches to the end, with "^2" or "{^2}" behind it.
std::string without_text(const std::string& text) {
  const size_t begin = std::min(text.find("\\text{"), text.find("\\mbox{"));
  if (begin == std::string::npos) return text;
  std::string_view rest = std::string_view(text).substr(begin);
  const size_t size = rest.size();
  if (size > 2 && is_ascii_digit(rest[size - 1]) && rest[size - 2] == '^') {
    rest.remove_suffix(2);
  } else if (size > 4 && rest.ends_with('}') && is_ascii_digit(rest[size - 2]) &&
             rest.substr(size - 4, 2) == "{^") {
    rest.remove_suffix(4);
  }
  if (!rest.ends_with('}')) return text;
  return std::string(trim(std::string_view(text).substr(0, begin)));
}

}  // namespace

std::string without_units(std::string text) {
  if (std::string shorter = without_text(text); !shorter.empty()) text = std::move(shorter);
  for (int round = 0; round < 2; ++round) {
    if (std::string shorter = without_word(text); !shorter.empty()) text = std::move(shorter);
  }
  return text;
}

}  // namespace nibble::math
