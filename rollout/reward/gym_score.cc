#include "rollout/reward/gym_score.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/fail.h"
#include "rollout/reward/arithmetic.h"
#include "rollout/reward/decimal.h"
#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

const Json& require(const Json& object, const char* key, Json::value_t type) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  const bool is_integer = type == Json::value_t::number_integer;
  if (!object.is_object() || found == object.end() ||
      (is_integer ? !found->is_number_integer() : found->type() != type)) {
    fail(ErrorCode::kInvalidArgument, "reasoning_gym label: '{}' is missing or of the wrong type",
         key);
  }
  return *found;
}

const std::string& require_text(const Json& object, const char* key) {
  return require(object, key, Json::value_t::string).get_ref<const std::string&>();
}

double share_of(std::string_view expected, std::string_view answer) {
  return static_cast<double>(count_code_points(expected)) /
         static_cast<double>(count_code_points(answer));
}

double score_substring(const std::string& expected, std::string_view answer) {
  if (answer.empty()) return 0;
  if (answer == expected) return 1;
  return answer.find(expected) != std::string_view::npos ? share_of(expected, answer) : 0;
}

std::string without_commas(std::string_view text) {
  std::string plain(text);
  plain.erase(std::remove(plain.begin(), plain.end(), ','), plain.end());
  return plain;
}

double score_decimal(const std::string& expected, std::string_view answer) {
  if (answer.empty()) return 0;
  const std::string plain_answer = without_commas(answer);
  const std::string plain_expected = without_commas(expected);
  const auto value = parse_decimal(plain_answer);
  if (value && value == parse_decimal(plain_expected)) return 1;
  return score_substring(plain_expected, plain_answer);
}

/// The first `max_count` code points, ASCII letters in lower case. Invalid bytes stand for
/// themselves.
std::vector<std::string> lower_code_points(std::string_view text, size_t max_count) {
  std::vector<std::string> points;
  for (const char c : text) {
    const bool continues = (static_cast<unsigned char>(c) & 0xc0) == 0x80 && !points.empty();
    if (!continues && points.size() == max_count) break;
    if (!continues) points.emplace_back();
    points.back().push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
  }
  return points;
}

double score_spell_backward(const std::string& expected, std::string_view answer) {
  const size_t length = count_code_points(expected);
  const auto want = lower_code_points(expected, length);
  const auto have = lower_code_points(answer, length);
  if (have == want && count_code_points(answer) == length) return 1;
  // Summed term by term: whether the sum is exactly 1 decides, as in the library.
  double reward = 0;
  for (size_t i = 0; i < std::min(want.size(), have.size()); ++i) {
    if (want[i] == have[i]) reward += 1 / static_cast<double>(length);
  }
  return reward == 1 ? reward - 0.2 : reward;
}

/// A flat JSON list of numbers or number strings, quotes of either kind; nullopt for anything else.
std::optional<std::vector<double>> parse_number_list(std::string_view text) {
  std::string json(text);
  std::replace(json.begin(), json.end(), '\'', '"');
  // Flat before parsing: nesting could not become numbers, but would cost memory.
  if (std::count(json.begin(), json.end(), '[') != 1 || json.find('{') != std::string::npos) {
    return std::nullopt;
  }
  const Json list = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return std::nullopt;
  std::vector<double> values;
  for (const Json& element : list) {
    if (element.is_number() || element.is_boolean()) {
      values.push_back(element.is_number() ? element.get<double>() : element.get<bool>());
    } else if (element.is_string()) {
      const auto value = parse_decimal(element.get_ref<const std::string&>());
      if (!value) return std::nullopt;
      values.push_back(to_double(*value));
    } else {
      return std::nullopt;
    }
    if (!std::isfinite(values.back())) return std::nullopt;
  }
  return values;
}

double score_number_sorting(const Json& item, std::string_view answer) {
  const auto expected = parse_number_list(require_text(item, "answer"));
  if (!expected) {
    fail(ErrorCode::kInvalidArgument, "reasoning_gym label: 'answer' is no list of numbers");
  }
  const Json& metadata = require(item, "metadata", Json::value_t::object);
  const bool is_ascending = require_text(metadata, "direction") == "ascending";
  const auto values = parse_number_list(answer);
  if (!values || values->size() != expected->size()) return 0;
  const bool is_sorted = is_ascending ? std::is_sorted(values->begin(), values->end())
                                      : std::is_sorted(values->rbegin(), values->rend());
  if (!is_sorted) return 0;
  constexpr double kTolerance = 1;  // the library's
  for (size_t i = 0; i < values->size(); ++i) {
    if (std::abs((*values)[i] - (*expected)[i]) > kTolerance) return 0;
  }
  return 1;
}

double score_countdown(const Json& item, std::string_view answer) {
  const Json& metadata = require(item, "metadata", Json::value_t::object);
  const auto target = static_cast<double>(
      require(metadata, "target", Json::value_t::number_integer).get<int64_t>());
  std::vector<int64_t> numbers;
  for (const Json& number : require(metadata, "numbers", Json::value_t::array)) {
    if (!number.is_number_integer()) {
      fail(ErrorCode::kInvalidArgument, "reasoning_gym label: 'numbers' must hold integers");
    }
    numbers.push_back(number.get<int64_t>());
  }
  auto result = evaluate_arithmetic(answer);
  if (!result) return 0.01;
  std::sort(numbers.begin(), numbers.end());
  std::sort(result->integers.begin(), result->integers.end());
  if (result->integers != numbers) return 0.05;
  // numpy.isclose with atol 1e-6 and its default rtol 1e-5.
  return std::abs(result->value - target) <= 1e-6 + 1e-5 * std::abs(target) ? 1 : 0.05;
}

/// What Python's int() reads, kept to 64 bits: nullopt if it is no integer, kHuge beyond.
constexpr int64_t kHuge = INT64_MAX;

std::optional<int64_t> parse_integer(std::string_view text) {
  text = trim(text);
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.empty() || !std::all_of(text.begin(), text.end(), is_ascii_digit)) return std::nullopt;
  int64_t value = 0;
  const auto error = std::from_chars(text.data(), text.data() + text.size(), value).ec;
  if (error != std::errc()) value = kHuge;
  return is_negative ? -value : value;
}

/// The sorted factors of "2 × 2 × 89"; empty parts are skipped.
std::vector<int64_t> parse_factors(std::string_view text) {
  constexpr std::string_view kTimes = "\xc3\x97";  // U+00D7
  std::vector<int64_t> factors;
  while (true) {
    const size_t end = text.find(kTimes);
    const std::string_view part = trim(text.substr(0, end));
    if (!part.empty()) {
      const auto factor = parse_integer(part);
      if (!factor) {
        fail(ErrorCode::kInvalidArgument,
             "prime_factorization: '{}' is not an integer; want factors separated by ×",
             part.substr(0, 40));
      }
      factors.push_back(*factor);
    }
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + kTimes.size());
  }
  std::sort(factors.begin(), factors.end());
  return factors;
}

/// Product of all factors, +-kHuge where it leaves 64 bits.
int64_t product_of(const std::vector<int64_t>& factors) {
  if (std::find(factors.begin(), factors.end(), 0) != factors.end()) return 0;
  bool is_negative = false;
  int64_t magnitude = 1;
  for (const int64_t factor : factors) {
    is_negative ^= factor < 0;
    if (__builtin_mul_overflow(magnitude, std::abs(factor), &magnitude)) magnitude = kHuge;
  }
  return is_negative ? -magnitude : magnitude;
}

double score_prime_factorization(const std::string& expected, std::string_view answer) {
  const auto want = parse_factors(expected);
  const auto have = parse_factors(answer);
  if (want == have) return 1;
  return product_of(want) == product_of(have) ? 0.5 : 0.01;
}

/// Reads "{ digits }" at the front of `text` and removes it.
std::optional<int64_t> take_braced_integer(std::string_view& text) {
  text = trim(text);
  const size_t close = text.find('}');
  if (!text.starts_with('{') || close == std::string_view::npos) return std::nullopt;
  const std::string_view digits = trim(text.substr(1, close - 1));
  text.remove_prefix(close + 1);
  if (digits.empty() || !is_ascii_digit(digits.front())) return std::nullopt;
  return parse_integer(digits);
}

bool take_command(std::string_view& text, std::string_view command) {
  const auto same = [](char a, char b) { return (a | 0x20) == b; };
  if (text.size() <= command.size() || text.front() != '\\' ||
      !std::equal(command.begin(), command.end(), text.begin() + 1,
                  [&](char want, char have) { return same(have, want); })) {
    return false;
  }
  text.remove_prefix(command.size() + 1);
  return true;
}

/// Numerator and denominator of "\frac{a}{b}", "\dfrac{a}{b}" or "a/b", dollars around it allowed.
std::optional<std::pair<int64_t, int64_t>> parse_fraction(std::string_view answer) {
  std::string_view text = trim(answer);
  while (text.starts_with('$')) text.remove_prefix(1);
  while (text.ends_with('$')) text.remove_suffix(1);
  text = trim(text);
  std::string_view rest = text;
  if (take_command(rest, "frac") || take_command(rest, "dfrac")) {
    const auto numerator = take_braced_integer(rest);
    const auto denominator = numerator ? take_braced_integer(rest) : std::nullopt;
    if (denominator) return std::pair(*numerator, *denominator);
  }
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const auto numerator = parse_integer(text.substr(0, slash));
  const auto denominator = parse_integer(text.substr(slash + 1));
  if (!numerator || !denominator) return std::nullopt;
  return std::pair(*numerator, *denominator);
}

double score_fraction(const Json& item, std::string_view answer) {
  const Json& metadata = require(item, "metadata", Json::value_t::object);
  const auto value = [&](const char* key) {
    return require(metadata, key, Json::value_t::number_integer).get<int64_t>();
  };
  const std::pair simplified(value("simplified_numerator"), value("simplified_denominator"));
  const std::pair original(value("numerator"), value("denominator"));
  const auto fraction = parse_fraction(answer);
  if (!fraction) return 0.01;
  if (*fraction == simplified) return 1;
  return fraction->first == original.first || fraction->second == original.second ? 0.1 : 0.05;
}

}  // namespace

double gym_score(const Json& item, std::string_view answer) {
  const std::string& task = require_text(item, "task");
  const std::string& expected = require_text(item, "answer");
  if (task == "chain_sum" || task == "products") return score_decimal(expected, answer);
  if (task == "spell_backward") return score_spell_backward(expected, answer);
  if (task == "number_sorting") return score_number_sorting(item, answer);
  if (task == "countdown") return score_countdown(item, answer);
  if (task == "prime_factorization") return score_prime_factorization(expected, answer);
  if (task == "fraction_simplification") return score_fraction(item, answer);
  for (const std::string_view plain : {"basic_arithmetic", "gcd", "lcm", "simple_equations",
                                       "letter_counting", "base_conversion", "leg_counting"}) {
    if (task == plain) return score_substring(expected, answer);
  }
  fail(ErrorCode::kInvalidArgument, "reasoning_gym label: no score rule for task '{}'", task);
}

std::string_view extract_gym_answer(std::string_view response) {
  constexpr std::string_view kOpen = "<answer>";
  constexpr std::string_view kClose = "</answer>";
  std::string_view answer = response;
  size_t at = 0;
  while (true) {
    const size_t open = response.find(kOpen, at);
    if (open == std::string_view::npos) return answer;
    const size_t begin = open + kOpen.size();
    const size_t close = response.find(kClose, begin);
    if (close == std::string_view::npos) return answer;
    answer = trim(response.substr(begin, close - begin));
    at = close + kClose.size();
  }
}

}  // namespace nibble
