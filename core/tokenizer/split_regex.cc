#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/tokenizer/split_regex.h"

#include <pcre2.h>

#include <array>
#include <cctype>

#include "core/base/fail.h"
#include "core/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr size_t kMaxPatternBytes = 16 << 10;
constexpr uint32_t kMatchLimit = 50'000'000;  // backtracking steps of one match
constexpr size_t kJitStackStart = 64 << 10;
constexpr size_t kJitStackMax = size_t{256} << 20;

// Unicode White_Space, which is what \s means in Oniguruma. PCRE2's own \s adds U+180E.
constexpr std::string_view kSpaces =
    R"(\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

/// Copies a pattern while checking it against the accepted constructs.
class Translator {
 public:
  Translator(std::string_view pattern, std::string_view what) : in_(pattern), what_(what) {}

  std::string run() {
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\') {
        escape(/*in_class=*/false);
      } else if (c == '[') {
        character_class();
      } else if (c == '(') {
        group();
      } else if (c == '^' || c == '$' || c == '.') {
        refuse(in_.substr(pos_, 1));
      } else if (c == '}' && pos_ + 1 < in_.size() && in_[pos_ + 1] == '+') {
        refuse("}+");  // possessive in PCRE2, a second repetition in Oniguruma
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view construct) const {
    fail(ErrorCode::kUnimplemented,
         "{}: the regular expression uses '{}', which is not supported: {}", what_, construct, in_);
  }

  void copy(size_t count) {
    out_ += in_.substr(pos_, count);
    pos_ += count;
  }

  void escape(bool in_class) {
    if (pos_ + 1 >= in_.size()) refuse("\\");
    const char c = in_[pos_ + 1];
    if (c == 's' || c == 'S') {
      if (in_class && c == 'S') refuse("\\S inside a class");
      if (!in_class) out_ += c == 's' ? "[" : "[^";
      out_ += kSpaces;
      if (!in_class) out_ += ']';
      pos_ += 2;
    } else if (c == 'p' || c == 'P') {
      const size_t end = in_.find('}', pos_);
      if (pos_ + 2 >= in_.size() || in_[pos_ + 2] != '{' || end == std::string_view::npos) {
        refuse(in_.substr(pos_, 2));
      }
      copy(end + 1 - pos_);
    } else if (std::string_view("rntfd").find(c) != std::string_view::npos ||
               std::ispunct(static_cast<unsigned char>(c))) {
      copy(2);
    } else {
      refuse(in_.substr(pos_, 2));
    }
  }

  void character_class() {
    copy(1);
    if (pos_ < in_.size() && in_[pos_] == '^') copy(1);
    if (pos_ < in_.size() && in_[pos_] == ']') refuse("[]");
    while (pos_ < in_.size() && in_[pos_] != ']') {
      if (in_[pos_] == '[') refuse("[ inside a class");
      if (in_.substr(pos_, 2) == "&&") refuse("&&");
      if (in_[pos_] == '\\') {
        escape(/*in_class=*/true);
      } else {
        copy(1);
      }
    }
    if (pos_ >= in_.size()) {
      fail(ErrorCode::kInvalidArgument, "{}: missing ] in the regular expression {}", what_, in_);
    }
    copy(1);
  }

  void group() {
    if (in_.substr(pos_, 2) == "(*") refuse("(*");
    if (in_.substr(pos_, 2) != "(?") return copy(1);
    for (const std::string_view open : {"(?:", "(?i:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (in_.substr(pos_, open.size()) == open) return copy(open.size());
    }
    refuse(in_.substr(pos_, 3));
  }

  std::string_view in_;
  std::string_view what_;
  std::string out_;
  size_t pos_ = 0;
};

/// Owns what one run of matches needs besides the code. Not shared between threads.
class MatchState {
 public:
  explicit MatchState(const pcre2_code* code)
      : data_(pcre2_match_data_create_from_pattern(code, nullptr)),
        context_(pcre2_match_context_create(nullptr)) {
    if (data_ == nullptr || context_ == nullptr) out_of_memory();
    pcre2_set_match_limit(context_, kMatchLimit);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
  ~MatchState() {
    pcre2_jit_stack_free(stack_);
    pcre2_match_context_free(context_);
    pcre2_match_data_free(data_);
  }

  /// PCRE2's result code of the first match at or after `start`.
  int match(const pcre2_code* code, std::string_view text, size_t start) {
    const auto attempt = [&] {
      return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                         PCRE2_NO_UTF_CHECK, data_, context_);
    };
    const int result = attempt();
    if (result != PCRE2_ERROR_JIT_STACKLIMIT || stack_ != nullptr) return result;
    // Rare, so the default stack serves until a match asks for more.
    stack_ = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
    if (stack_ == nullptr) out_of_memory();
    pcre2_jit_stack_assign(context_, nullptr, stack_);
    return attempt();
  }
  size_t begin() const { return pcre2_get_ovector_pointer(data_)[0]; }
  size_t end() const { return pcre2_get_ovector_pointer(data_)[1]; }

 private:
  [[noreturn]] static void out_of_memory() {
    fail(ErrorCode::kResourceExhausted, "no memory for a regular expression match");
  }
  pcre2_match_data* data_ = nullptr;
  pcre2_match_context* context_ = nullptr;
  pcre2_jit_stack* stack_ = nullptr;
};

std::string pcre2_message(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

}  // namespace

struct SplitRegex::Code {
  explicit Code(pcre2_code* owned) : code(owned) {}
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
  pcre2_code* code;
};

std::string translate_onig_pattern(std::string_view pattern, std::string_view what) {
  return Translator(pattern, what).run();
}

SplitRegex::SplitRegex(std::string_view pattern, std::string_view what) : what_(what) {
  if (pattern.size() > kMaxPatternBytes || find_invalid_utf8(pattern) != std::string_view::npos) {
    fail(ErrorCode::kInvalidArgument, "{}: the regular expression is not UTF-8 of at most {} bytes",
         what, kMaxPatternBytes);
  }
  const std::string translated = translate_onig_pattern(pattern, what);
  int error = 0;
  size_t error_offset = 0;
  constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                   translated.size(), kOptions, &error, &error_offset, nullptr);
  if (code == nullptr) {
    fail(ErrorCode::kInvalidArgument, "{}: the regular expression {} does not compile: {}", what,
         pattern, pcre2_message(error));
  }
  code_ = std::make_unique<Code>(code);
  // Without JIT support on this processor pcre2_match interprets: the same result, slower.
  (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

SplitRegex::SplitRegex(SplitRegex&&) noexcept = default;
SplitRegex& SplitRegex::operator=(SplitRegex&&) noexcept = default;
SplitRegex::~SplitRegex() = default;

void SplitRegex::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  const auto add = [&](size_t begin, size_t end) {
    if (begin < end) pieces.push_back(text.substr(begin, end - begin));
  };
  MatchState state(code_->code);
  size_t done = 0;   // everything before is in `pieces`
  size_t start = 0;  // where to look next: past `done` only after an empty match
  while (start < text.size()) {
    const int result = state.match(code_->code, text, start);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      fail(ErrorCode::kResourceExhausted, "{}: splitting a text of {} bytes fails: {}", what_,
           text.size(), pcre2_message(result));
    }
    add(done, state.begin());
    add(state.begin(), state.end());
    done = state.end();
    if (done >= text.size()) break;
    start = state.end() > state.begin() ? done : done + utf8_step(text, done).bytes;
  }
  add(done, text.size());
}

}  // namespace nibble
