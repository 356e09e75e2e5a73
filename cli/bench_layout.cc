#include "cli/bench_layout.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr std::array<std::string_view, 3> kUnits = {"dp", "tp", "ep"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// One reading of a text, from left to right.
class LayoutReader {
 public:
  LayoutReader(std::string_view flag, const std::string& text) : flag_(flag), text_(text) {}

  bool done() const { return at_ == text_.size(); }
  /// Reads "Rx" if it stands here, else returns 0.
  int read_replicas() {
    size_t end = at_;
    while (end < text_.size() && is_digit(text_[end])) ++end;
    if (end == at_) return 0;
    if (end == text_.size() || text_[end] != 'x') {
      refuse(text_.substr(at_, end - at_), "has no unit; replicas are written '2x'");
    }
    const std::string part = text_.substr(at_, end + 1 - at_);
    const int count = number(part, at_, end);
    at_ = end + 1;
    return count;
  }
  /// Reads a unit with its number and returns the unit's index.
  size_t read_part(int* count) {
    size_t digits = at_;
    while (digits < text_.size() && !is_digit(text_[digits])) ++digits;
    size_t end = digits;
    while (end < text_.size() && is_digit(text_[end])) ++end;
    const std::string part = text_.substr(at_, end - at_);
    const auto unit = std::find(kUnits.begin(), kUnits.end(), part.substr(0, digits - at_));
    if (unit == kUnits.end()) refuse(part, "is none of dpN, tpN and epN");
    *count = number(part, digits, end);
    at_ = end;
    const auto index = static_cast<size_t>(unit - kUnits.begin());
    if (index < next_unit_) refuse(part, "is out of place; dp, tp, ep come in this order, once");
    next_unit_ = index + 1;
    return index;
  }
  [[noreturn]] void refuse(const std::string& part, const std::string& problem) const {
    fail(ErrorCode::kInvalidArgument, "{} '{}': part '{}' {}", flag_, text_, part, problem);
  }

 private:
  int number(const std::string& part, size_t begin, size_t end) const {
    int count = 0;
    const char* const last = text_.data() + end;
    const auto [stop, error] = std::from_chars(text_.data() + begin, last, count);
    if (error != std::errc{} || stop != last || text_[begin] == '0' || count > kMaxBenchRanks) {
      refuse(part, fmt::format("needs a whole number from 1 to {}", kMaxBenchRanks));
    }
    return count;
  }

  const std::string_view flag_;
  const std::string& text_;
  size_t at_ = 0;
  size_t next_unit_ = 0;
};

}  // namespace

BenchLayout parse_bench_layout(std::string_view flag, const std::string& text, bool has_replicas) {
  if (text.empty()) {
    fail(ErrorCode::kInvalidArgument, "{} is empty; a layout looks like dp2tp2", flag);
  }
  LayoutReader reader(flag, text);
  BenchLayout layout;
  if (const int replicas = reader.read_replicas(); replicas > 0) {
    const std::string part = fmt::format("{}x", replicas);
    if (!has_replicas) reader.refuse(part, "names replicas; only --to has them");
    layout.replicas = replicas;
  }
  std::array<int, kUnits.size()> counts = {0, 1, 1};
  while (!reader.done()) {
    int count = 0;
    const size_t unit = reader.read_part(&count);
    counts[unit] = count;
  }
  const auto [data, tensor, expert] = counts;
  const int world = data > 0 ? data * tensor : std::max(tensor, expert);
  layout.mesh = {world, tensor, expert};
  if (world % tensor != 0) {
    reader.refuse(fmt::format("tp{}", tensor), fmt::format("does not divide {} ranks", world));
  }
  if (world % expert != 0) {
    reader.refuse(fmt::format("ep{}", expert), fmt::format("does not divide {} ranks", world));
  }
  if (layout.num_ranks() > kMaxBenchRanks) {
    fail(ErrorCode::kInvalidArgument, "{} '{}' has {} ranks; each is a process, at most {}", flag,
         text, layout.num_ranks(), kMaxBenchRanks);
  }
  return layout;
}

}  // namespace nibble
