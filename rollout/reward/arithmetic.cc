#include "rollout/reward/arithmetic.h"

#include <charconv>
#include <cmath>
#include <cstddef>

#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

constexpr size_t kMaxBytes = 4096;
constexpr int kMaxDepth = 100;
constexpr size_t kMaxDigits = 18;
// Quotients of small integers that should cancel leave about 1e-16; real ones stay above this.
constexpr double kZeroDivisor = 1e-12;

/// Recursive descent over one expression. Every method returns nullopt once the text is refused.
class Evaluator {
 public:
  explicit Evaluator(std::string_view text) : text_(text) {}

  std::optional<Arithmetic> run() {
    const auto value = sum(0);
    skip_space();
    if (!value || at_ != text_.size()) return std::nullopt;
    return Arithmetic{*value, std::move(integers_)};
  }

 private:
  std::optional<double> sum(int depth) {
    auto left = product(depth);
    while (left) {
      const bool is_plus = accept("+");
      if (!is_plus && !accept("-")) break;
      const auto right = product(depth);
      left = right ? finite(is_plus ? *left + *right : *left - *right) : std::nullopt;
    }
    return left;
  }

  std::optional<double> product(int depth) {
    auto left = sign(depth);
    while (left) {
      if (next_is("**")) break;
      const bool is_times = accept("*");
      if (!is_times && !accept("/")) break;
      const auto right = sign(depth);
      if (!right || (!is_times && std::abs(*right) < kZeroDivisor)) return std::nullopt;
      left = finite(is_times ? *left * *right : *left / *right);
    }
    return left;
  }

  std::optional<double> sign(int depth) {
    if (depth > kMaxDepth) return std::nullopt;
    if (accept("+")) return sign(depth + 1);
    if (accept("-")) {
      const auto value = sign(depth + 1);
      return value ? std::optional(-*value) : std::nullopt;
    }
    return power(depth);
  }

  std::optional<double> power(int depth) {
    const auto base = atom(depth);
    if (!base || !accept("**")) return base;
    const auto exponent = sign(depth + 1);  // binds to the right, and looser than its own sign
    if (!exponent || (std::abs(*base) < kZeroDivisor && *exponent < 0)) return std::nullopt;
    return finite(std::pow(*base, *exponent));
  }

  std::optional<double> atom(int depth) {
    if (depth > kMaxDepth) return std::nullopt;
    if (!accept("(")) return number();
    ++open_;
    const auto value = sum(depth + 1);
    if (!value || !accept(")")) return std::nullopt;
    --open_;
    return value;
  }

  std::optional<double> number() {
    skip_space();
    const size_t begin = at_;
    const std::string_view whole = digits();
    const bool has_point = at_ < text_.size() && text_[at_] == '.';
    if (has_point) ++at_;
    const std::string_view fraction = has_point ? digits() : std::string_view();
    if (!has_point && whole.size() > 1 && whole.front() == '0' &&
        whole.find_first_not_of('0') != std::string_view::npos) {
      return std::nullopt;
    }
    if ((whole.empty() && fraction.empty()) || !keep(whole) || !keep(fraction)) return std::nullopt;
    double value = 0;
    std::from_chars(text_.data() + begin, text_.data() + at_, value);
    return value;
  }

  std::string_view digits() {
    const size_t begin = at_;
    while (at_ < text_.size() && is_ascii_digit(text_[at_])) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  bool keep(std::string_view digits) {
    if (digits.size() > kMaxDigits) return false;
    if (digits.empty()) return true;
    int64_t value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    integers_.push_back(value);
    return true;
  }

  static std::optional<double> finite(double value) {
    return std::isfinite(value) ? std::optional(value) : std::nullopt;
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' ||
                                  (open_ > 0 && (text_[at_] == '\n' || text_[at_] == '\r')))) {
      ++at_;
    }
  }

  bool next_is(std::string_view token) {
    skip_space();
    return text_.substr(at_, token.size()) == token;
  }

  bool accept(std::string_view token) {
    if (!next_is(token)) return false;
    at_ += token.size();
    return true;
  }

  const std::string_view text_;
  size_t at_ = 0;
  int open_ = 0;  // parentheses around at_
  std::vector<int64_t> integers_;
};

}  // namespace

std::optional<Arithmetic> evaluate_arithmetic(std::string_view text) {
  text = trim(text);
  if (text.size() > kMaxBytes) return std::nullopt;
  return Evaluator(text).run();
}

}  // namespace nibble
