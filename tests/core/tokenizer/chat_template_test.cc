#include "core/tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include <functional>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "tests/core/tokenizer/oracle_files.h"

namespace nibble {
namespace {

using test::oracle_path;
using test::qwen_tokenizer;
using test::read_oracle_lines;

std::tm fixed_time() {
  std::tm now{};
  now.tm_year = 126;
  now.tm_mon = 2;
  now.tm_mday = 4;
  now.tm_hour = 15;
  now.tm_min = 6;
  now.tm_sec = 7;
  now.tm_wday = 3;
  now.tm_yday = 62;
  return now;
}

std::string render(std::string_view source, const OrderedJson& variables = OrderedJson::object()) {
  return ChatTemplate(source, "test").render_variables(variables, fixed_time());
}

/// The message of the Error{kInvalidArgument} that `act` must throw.
std::string error_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(ChatTemplate, RendersWhatJinja2Renders) {
  for (const auto& line : read_oracle_lines("jinja/cases.jsonl")) {
    const auto source = line["template"].get<std::string>();
    if (line.contains("error")) {
      EXPECT_THROW(render(source, line["variables"]), Error) << source;
      continue;
    }
    try {
      EXPECT_EQ(render(source, line["variables"]), line["text"].get<std::string>()) << source;
    } catch (const Error& error) {
      ADD_FAILURE() << error.what() << "\n" << source;
    }
  }
}

TEST(ChatTemplate, RendersQwen3ConversationsLikeTransformers) {
  const ChatTemplate chat(read_file(oracle_path("tokenizer/chat_template.jinja"), 1 << 20),
                          "Qwen3");
  for (const auto& line : read_oracle_lines("tokenizer/chat_template.jsonl")) {
    ChatRequest request;
    request.messages = &line["messages"];
    if (line.contains("tools")) request.tools = &line["tools"];
    if (line.contains("kwargs")) request.variables = &line["kwargs"];
    request.add_generation_prompt = line.value("add_generation_prompt", false);
    if (line.contains("error")) {
      EXPECT_THROW(chat.render(request), Error) << line["name"];
      continue;
    }
    const std::string text = chat.render(request);
    EXPECT_EQ(text, line["text"].get<std::string>()) << line["name"];
    EXPECT_EQ(qwen_tokenizer().encode(text), line["ids"].get<std::vector<int32_t>>());
  }
}

TEST(ChatTemplate, GivesSpecialTokensAndNullsToTheTemplate) {
  const ChatTemplate chat(
      "{{ bos_token }}{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}", "test",
      {{"bos_token", "<s>"}});
  EXPECT_EQ(chat.render({}), "<s>TrueTrueFalse");
}

TEST(ChatTemplate, ExtraVariablesGoBeforeItsOwn) {
  const ChatTemplate chat("{{ add_generation_prompt }}{{ x }}", "test");
  const OrderedJson extra = {{"add_generation_prompt", 3}, {"x", "y"}};
  EXPECT_EQ(chat.render({.variables = &extra}), "3y");
  const OrderedJson list = OrderedJson::array();
  EXPECT_THROW(chat.render({.variables = &list}), Error);
}

TEST(ChatTemplate, NamesTheTemplateAndTheLineOfAnError) {
  EXPECT_EQ(error_of([] { render("a\nb\n{{ 1 + none }}"); }),
            "test line 3: int + NoneType is not supported");
  EXPECT_EQ(error_of([] { render("\n{{ raise_exception('no ' ~ 1) }}"); }), "test line 2: no 1");
  EXPECT_EQ(error_of([] { render("\n\n{% bogus %}"); }), "test line 3: unknown statement 'bogus'");
  EXPECT_EQ(error_of([] { render("{{ 1\n| bogus }}"); }), "test line 2: unknown filter 'bogus'");
  EXPECT_EQ(error_of([] { render("{{ 1 is bogus }}"); }), "test line 1: unknown test 'bogus'");
  EXPECT_EQ(error_of([] { render("{% for a in b recursive %}{% endfor %}"); }),
            "test line 1: recursive loops are not supported");
  EXPECT_NE(error_of([] { render("{{ x.y }}"); }).find("'x' is undefined"), std::string::npos);
}

TEST(ChatTemplate, RefusesUnknownFiltersBeforeRendering) {
  EXPECT_THROW(ChatTemplate("{% if false %}{{ x | urlize }}{% endif %}", "test"), Error);
}

class Hostile : public ::testing::TestWithParam<std::string> {};

// Each would run for ever, use all memory or overflow the stack without its bound.
TEST_P(Hostile, TemplateEndsWithAnErrorSoon) {
  const Stopwatch watch;
  EXPECT_THROW(render(GetParam()), Error) << GetParam().substr(0, 100);
  EXPECT_LT(watch.elapsed_ms(), 60'000);
}

std::string nested(const std::string& open, const std::string& close, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += open;
  text += "1";
  for (int i = 0; i < count; ++i) text += close;
  return text;
}

std::string many(const std::string& unit, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += unit;
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    Templates, Hostile,
    ::testing::Values(
        "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% "
        "endfor %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% "
        "endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% "
        "endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(100) %}{% set ns.l = ns.l + ns.l %}{% "
        "endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% "
        "endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(200) %}{% set ns.l = [ns.l, ns.l] %}{% "
        "endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(200) %}{% set ns.l = [ns.l, ns.l] %}{% "
        "endfor %}{{ ns.l|tojson|length }}",
        "{% set a = namespace(l=[1]) %}{% set b = namespace(l=[1]) %}{% for i in range(200) %}{% "
        "set a.l = [a.l, a.l] %}{% set b.l = [b.l, b.l] %}{% endfor %}{{ a.l == b.l }}",
        "{{ 'x' * 999999999999 }}", "{{ [1] * 999999999999 }}", "{{ range(999999999999) }}",
        "{{ 9 ** 9 ** 9 ** 9 }}", "{{ 9223372036854775807 + 1 }}", "{{ 99999999999999999999 }}",
        "{{ (0 - 9223372036854775807 - 1) // -1 }}",
        "{% set s = 'a' * 30000000 %}{% for i in range(1000) %}{% set x = s.replace('b', 'c') %}{% "
        "endfor %}",
        "{% set s = 'a' * 30000000 %}{{ s.rfind('b' ~ 'a' * 1000000) }}",
        "{% set s = 'a' * 20000000 %}{{ s.split('a')|length }}{{ s.split('a')|length }}",
        "{{ 'a'|indent(999999999) }}", "{{ strftime_now('%c' * 1000) }}",
        "{% set ns = namespace() %}{% for i in [1] %}{% set ns.l = loop %}{% endfor %}{{ "
        "ns.l.index }}"));

INSTANTIATE_TEST_SUITE_P(
    Nesting, Hostile,
    ::testing::Values(
        "{{ " + nested("(", ")", 10000) + " }}", "{{ " + nested("[", "]", 10000) + " }}",
        "{{ " + nested("{1:", "}", 10000) + " }}", "{{ " + nested("-", "", 100000) + " }}",
        "{{ " + nested("not ", "", 100000) + " }}", "{{ 1" + many(" + 1", 100000) + " }}",
        "{{ 1" + many("|abs", 100000) + " }}", "{{ x" + many(".a", 100000) + " }}",
        "{{ x" + many("[0]", 100000) + " }}", "{{ x" + many("()", 100000) + " }}",
        "{{ 1" + many(" if 1 else 1", 100000) + " }}", "{{ 1" + many(" is odd", 2) + " }}",
        nested("{% if 1 %}", "{% endif %}", 10000),
        nested("{% for a in [1] %}", "{% endfor %}", 10000),
        "{% set " + nested("(", ")", 10000) + " = 1 %}", std::string((1 << 20) + 1, 'x'),
        std::string("{{ '\xFF' }}")));

TEST(ChatTemplateLimits, LetLongConversationsThrough) {
  OrderedJson messages = OrderedJson::array();
  for (int i = 0; i < 2000; ++i) {
    messages.push_back(
        {{"role", i % 2 == 0 ? "user" : "assistant"},
         {"content", "<think>" + std::string(1000, 'x') + "</think>" + std::string(1000, 'y')}});
  }
  const ChatTemplate chat(read_file(oracle_path("tokenizer/chat_template.jinja"), 1 << 20),
                          "Qwen3");
  EXPECT_GT(chat.render({.messages = &messages}).size(), 2'000'000u);
}

TEST(ChatTemplateLimits, RefuseInputThatPythonWouldReadDifferently) {
  EXPECT_THROW(render("{{ x }}", {{"x", 18446744073709551615u}}), Error);
  EXPECT_THROW(render("{{ x }}", {{"x", "\xFF"}}), Error);
  OrderedJson deep = 1;
  for (int i = 0; i < 200; ++i) deep = OrderedJson::array({deep});
  EXPECT_THROW(render("{{ x }}", {{"x", deep}}), Error);
}

// Every prefix and many one-byte changes of a real template: an error or a text, never worse.
TEST(ChatTemplateLimits, DamagedTemplatesFailCleanly) {
  const std::string source = read_file(oracle_path("tokenizer/chat_template.jinja"), 1 << 20);
  const OrderedJson variables = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
  const auto attempt = [&](const std::string& damaged) {
    try {
      render(damaged, variables);
      return true;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << error.what();
      return false;
    }
  };
  int refused = 0;
  for (size_t size = 0; size < source.size(); size += 7)
    refused += attempt(source.substr(0, size)) ? 0 : 1;
  for (size_t at = 0; at < source.size(); at += 3) {
    std::string damaged = source;
    damaged[at] = "{}%#'\"\\([|.\n"[at % 12];
    refused += attempt(damaged) ? 0 : 1;
  }
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace nibble
