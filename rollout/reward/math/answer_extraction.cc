#include "rollout/reward/math/answer_extraction.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>
#include <vector>

#include "rollout/reward/math/latex_normalize.h"
#include "rollout/reward/math/latex_parser.h"
#include "rollout/reward/math/latex_spans.h"
#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/math/plain_spans.h"
#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/text/boxed.h"

namespace nibble::math {
namespace {

constexpr size_t kNone = std::string_view::npos;
constexpr std::string_view kBoxOpen = "\\boxed{";

struct Candidate {
  size_t begin = 0;
  size_t end = 0;
  std::vector<LatexPiece> latex;  ///< empty: plain
  PlainSpan plain;
  BoxChoice boxes = BoxChoice::kAll;
};

using Candidates = std::vector<Candidate>;

Candidate of(size_t begin, LatexSpan span) {
  return {begin, span.end, std::move(span.pieces), {}, BoxChoice::kAll};
}
Candidate of(size_t begin, const PlainSpan& span) { return {begin, span.end, {}, span}; }

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

class Search {
 public:
  explicit Search(std::string_view text) : text_(text), lower_(lower(text)) {}

  Candidates hoped() const;
  Candidates boxed() const;
  Candidates anchored(std::string_view anchor) const;
  Candidates anywhere() const;

 private:
  void add_final(Candidates& found) const;
  std::optional<Candidate> latex_within(size_t begin, size_t at, size_t reach) const;
  std::optional<Candidate> plain_within(size_t begin, size_t at) const;
  std::optional<Candidate> plain_before_equals(size_t begin, size_t at) const;
  std::vector<size_t> places_of(std::string_view anchor) const;

  const std::string_view text_;
  const std::string lower_;
};

/// Where `anchor` ends, in order; the last kMaxCandidates of them.
std::vector<size_t> Search::places_of(std::string_view anchor) const {
  std::vector<size_t> ends;
  for (size_t at = lower_.rfind(anchor); at != kNone && ends.size() < kMaxCandidates;
       at = at == 0 ? kNone : lower_.rfind(anchor, at - 1)) {
    ends.push_back(at + anchor.size());
  }
  std::reverse(ends.begin(), ends.end());
  return ends;
}

Candidates Search::hoped() const {
  Candidates found;
  LatexScanner scanner(text_);
  for (const size_t end : places_of("final answer is")) {
    size_t at = is_at(text_, end, ":") ? end + 1 : end;
    const size_t behind_space = skip_space(text_, at);
    std::optional<Candidate> candidate;
    if (auto span = scanner.span_at(behind_space)) {
      candidate = of(end, std::move(*span));
    } else if (const auto plain = plain_span_at(text_, behind_space > at ? behind_space - 1 : at)) {
      candidate = of(end, *plain);
    }
    if (!candidate) continue;
    at = candidate->end;
    if (is_at(text_, at, ".")) ++at;
    if (is_at(lower_, skip_space(text_, at), "i hope")) found.push_back(std::move(*candidate));
  }
  return found;
}

/// "final answer .. is X" with at most 100 characters between.
void Search::add_final(Candidates& found) const {
  LatexScanner scanner(text_);
  constexpr size_t kReach = 100;
  for (const size_t end : places_of("final answer")) {
    const size_t limit = std::min(text_.size(), end + kReach + 2);
    for (size_t is = lower_.find("is", end); is < limit; is = lower_.find("is", is + 1)) {
      if (!is_space(text_[is - 1])) continue;
      size_t at = is + 2;
      if (is_at(text_, at, ":")) ++at;
      if (auto span = scanner.span_at(skip_space(text_, at))) {
        found.push_back(of(end, std::move(*span)));
        break;
      }
      if (const auto plain = plain_span_at(text_, at)) {
        found.push_back(of(end, *plain));
        break;
      }
    }
  }
}

Candidates Search::boxed() const {
  Candidates found;
  LatexScanner scanner(text_);
  add_final(found);
  for (size_t at = 0; at < text_.size();) {
    auto span = scanner.span_at(at);
    if (!span) {
      ++at;
      continue;
    }
    at = std::max(span->end, at + 1);
    // Only the piece with the box counts here, not what is joined to it.
    for (const LatexPiece& piece : span->pieces) {
      const size_t open = piece.content.find(kBoxOpen);
      if (open == kNone || piece.content.find('}', open + kBoxOpen.size() + 1) == kNone) continue;
      const auto end =
          static_cast<size_t>(piece.content.data() - text_.data()) + piece.content.size() + 1;
      found.push_back({span->begin, end, {piece}, {}, BoxChoice::kAll});
    }
  }
  const size_t first = text_.find(kBoxOpen);
  const size_t last = text_.rfind('}');
  if (first != kNone && last != kNone && last > first + kBoxOpen.size()) {
    const LatexPiece all{text_.substr(first, last + 1 - first)};
    found.push_back({first, last + 1, {all}, {}, BoxChoice::kLast});
  }
  return found;
}

std::optional<Candidate> Search::latex_within(size_t begin, size_t at, size_t reach) const {
  LatexScanner scanner(text_);
  for (const size_t limit = std::min(text_.size(), at + reach + 1); at < limit; ++at) {
    if (auto span = scanner.span_at(at)) return of(begin, std::move(*span));
  }
  return std::nullopt;
}

/// Behind the last "=" of the next 100 characters of the line that a value follows.
std::optional<Candidate> Search::plain_before_equals(size_t begin, size_t at) const {
  constexpr size_t kReach = 100;
  const size_t line_end = std::min(text_.find('\n', at), text_.size());
  for (size_t equals = std::min(line_end, at + kReach + 1); equals-- > at;) {
    if (text_[equals] != '=') continue;
    const size_t value = skip_space(text_, equals + 1);
    const auto plain = plain_span_at(text_, value > equals + 1 ? value - 1 : value);
    if (plain && !is_at(text_, skip_space(text_, plain->end), "=")) return of(begin, *plain);
  }
  return std::nullopt;
}

std::optional<Candidate> Search::plain_within(size_t begin, size_t at) const {
  constexpr size_t kReach = 50;
  if (auto found = plain_before_equals(begin, at)) return found;
  const size_t line_end = std::min(text_.find('\n', at), text_.size());
  for (const size_t limit = std::min(line_end, at + kReach); at <= limit; ++at) {
    const auto plain = plain_span_at(text_, at);
    if (plain && !is_at(text_, skip_space(text_, plain->end), "=")) return of(begin, *plain);
  }
  return std::nullopt;
}

Candidates Search::anchored(std::string_view anchor) const {
  constexpr size_t kReach = 50;
  Candidates found;
  for (const size_t end : places_of(anchor)) {
    if (auto latex = latex_within(end, end, kReach)) found.push_back(std::move(*latex));
    if (auto plain = plain_within(end, end)) found.push_back(std::move(*plain));
  }
  return found;
}

Candidates Search::anywhere() const {
  Candidates found;
  LatexScanner scanner(text_);
  const auto scan = [&](const auto& span_at) {
    for (size_t at = 0; at < text_.size();) {
      const auto span = span_at(at);
      if (span) found.push_back(of(span->begin, *span));
      at = span ? std::max(span->end, at + 1) : at + 1;
    }
  };
  scan([&](size_t at) { return scanner.span_at(at); });
  scan([&](size_t at) { return arithmetic_at(text_, at); });
  scan([&](size_t at) { return number_at(text_, at); });
  return found;
}

/// The last of several equations: a = b = 5 is 5.
std::string last_equation(const std::string& latex) {
  if (latex.find_first_of(",;") != std::string::npos) return latex;
  int parts = 1;
  size_t last = 0;
  for (size_t at = 0; at < latex.size(); ++at) {
    const bool is_sign =
        latex[at] == '=' && (at == 0 || std::string_view("\\<!>").find(latex[at - 1]) == kNone);
    if (!is_sign) continue;
    ++parts;
    last = at + 1;
  }
  return parts > 2 ? latex.substr(last) : latex;
}

Expression read_latex(const std::string& latex) {
  auto expression = parse_latex(latex);
  if (!expression) {
    const std::string last = last_equation(latex);
    if (last.size() < latex.size()) expression = parse_latex(last);
  }
  return expression.value_or(nullptr);
}

ExtractedAnswer read(const Candidate& candidate) {
  if (candidate.latex.empty()) {
    std::string text(candidate.plain.text);
    return {read_plain(candidate.plain), std::move(text)};
  }
  ExtractedAnswer answer;
  std::vector<Expression> elements;
  for (const LatexPiece& piece : candidate.latex) {
    const std::string latex = normalize_latex(piece.content, candidate.boxes);
    Expression x = read_latex(latex);
    if (x && piece.is_percent) x = make_node(Op::kPercent, {x});
    if (elements.empty()) answer.expression = x;
    answer.text += (answer.text.empty() ? "" : " and ") + latex;
    elements.push_back(std::move(x));
  }
  const bool are_read = std::all_of(elements.begin(), elements.end(),
                                    [](const Expression& x) { return x != nullptr; });
  if (elements.size() == 1 || !are_read) return answer;
  std::vector<Expression> all;
  for (const Expression& x : elements) {
    if (x->op == Op::kSet) {
      all.insert(all.end(), x->args.begin(), x->args.end());
    } else {
      all.push_back(x);
    }
  }
  answer.expression = make_node(Op::kSet, std::move(all));
  return answer;
}

/// Reads candidates, the last one first; keeps the text of the very first in `answer`.
bool read_last(Candidates candidates, ExtractedAnswer& answer) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) {
                     return a.end != b.end ? a.end > b.end : a.begin < b.begin;
                   });
  int tried = 0;
  for (const Candidate& candidate : candidates) {
    if (++tried > kMaxCandidates) break;
    ExtractedAnswer next = read(candidate);
    if (answer.text.empty()) answer.text = std::move(next.text);
    if (next.expression) {
      answer.expression = std::move(next.expression);
      return true;
    }
  }
  return false;
}

}  // namespace

ExtractedAnswer extract_answer(std::string_view text) {
  if (text.size() > kMaxSearchedBytes) text.remove_prefix(text.size() - kMaxSearchedBytes);
  const Search search(text);
  ExtractedAnswer answer;
  if (read_last(search.hoped(), answer)) return answer;
  if (read_last(search.boxed(), answer)) return answer;
  if (read_last(search.anchored("answer:"), answer)) return answer;
  if (read_last(search.anchored("answer"), answer)) return answer;
  read_last(search.anywhere(), answer);
  return answer;
}

}  // namespace nibble::math
