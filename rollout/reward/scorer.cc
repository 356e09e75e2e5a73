#include "rollout/reward/scorer.h"

#include <algorithm>
#include <cctype>
#include <limits>

#include "core/base/fail.h"
#include "rollout/reward/gym_score.h"
#include "rollout/reward/last_number.h"
#include "rollout/reward/text.h"

namespace nibble {
namespace {

std::string label_text(const Json& label) {
  if (label.is_string()) return label.get<std::string>();
  if (label.is_number()) {
    std::string text = label.dump();
    // A JSON number with more digits than a double holds has lost some by now.
    constexpr auto kDigits = std::numeric_limits<double>::digits10;
    const std::string mantissa = text.substr(0, text.find_first_of("eE"));
    if (label.is_number_float() &&
        std::count_if(mantissa.begin(), mantissa.end(),
                      [](unsigned char c) { return std::isdigit(c) != 0; }) > kDigits + 1) {
      fail(ErrorCode::kInvalidArgument,
           "the label {} has more digits than a JSON number keeps; write it as a string", text);
    }
    return text;
  }
  fail(ErrorCode::kInvalidArgument, "the label is of type {}; want a string or a number",
       label.type_name());
}

void check_response(std::string_view response) {
  if (response.size() > kMaxResponseBytes) {
    fail(ErrorCode::kInvalidArgument, "the response has {} bytes; at most {} are scored",
         response.size(), kMaxResponseBytes);
  }
}

class LastNumberScorer final : public Scorer {
 public:
  double score(std::string_view response, const Json& label) const override {
    check_response(response);
    const std::string text = label_text(label);
    const auto expected = find_last_number(text);
    if (!expected) fail(ErrorCode::kInvalidArgument, "the label '{}' holds no number", text);
    return find_last_number(response) == expected ? 1 : 0;
  }
};

class ExactScorer final : public Scorer {
 public:
  double score(std::string_view response, const Json& label) const override {
    check_response(response);
    return trim(response) == trim(label_text(label)) ? 1 : 0;
  }
};

class GymScorer final : public Scorer {
 public:
  double score(std::string_view response, const Json& label) const override {
    check_response(response);
    return gym_score(label, extract_gym_answer(response));
  }
};

}  // namespace

std::unique_ptr<Scorer> make_scorer(const std::string& type) {
  if (type == "last_number") return std::make_unique<LastNumberScorer>();
  if (type == "exact") return std::make_unique<ExactScorer>();
  if (type == "reasoning_gym") return std::make_unique<GymScorer>();
  fail(ErrorCode::kInvalidArgument,
       "reward type '{}' is unknown; known are last_number, exact, reasoning_gym", type);
}

}  // namespace nibble
