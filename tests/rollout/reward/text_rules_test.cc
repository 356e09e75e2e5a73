// gpqa, f1, ifbench and boxed_: rules on text, by what their headers say.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/json.h"
#include "rollout/reward/instructions/instruction_score.h"
#include "rollout/reward/multiple_choice.h"
#include "rollout/reward/scorer.h"
#include "rollout/reward/text/boxed.h"
#include "rollout/reward/token_f1.h"

namespace nibble {
namespace {

ErrorCode refusal_of(const std::string& type, const std::string& response, const Json& label) {
  try {
    const double score = make_scorer(type)->score(response, label);
    ADD_FAILURE() << type << " gave " << score << " for " << label;
  } catch (const Error& error) {
    return error.code();
  }
  return ErrorCode::kInternal;
}

TEST(LastBoxed, IsTheLastOneAndNothingIfItDoesNotClose) {
  EXPECT_EQ(last_boxed("\\boxed{1} \\boxed{\\frac{1}{2}}."), "\\frac{1}{2}");
  EXPECT_EQ(last_boxed("\\boxed{1} \\fbox{2}"), "1");
  EXPECT_EQ(last_boxed("\\fbox{2}"), "2");
  EXPECT_EQ(last_boxed("\\boxed{}"), "");
  EXPECT_FALSE(last_boxed("\\boxed{1} \\boxed{2"));
  EXPECT_FALSE(last_boxed("\\boxed 1"));
  EXPECT_FALSE(last_boxed("none"));
}

TEST(BoxedPrefix, ScoresTheContentOfTheLastBox) {
  EXPECT_EQ(make_scorer("boxed_exact")->score("so \\boxed{a} or \\boxed{ b }!", "b"), 1);
  EXPECT_EQ(make_scorer("boxed_exact")->score("b", "b"), 0);
  EXPECT_EQ(make_scorer("boxed_last_number")->score("\\boxed{4} of 5", 4), 1);
  EXPECT_EQ(make_scorer("boxed_f1")->score("\\boxed{red cat} runs", "red cat"), 1);
  EXPECT_EQ(make_scorer("boxed_gpqa")->score("A \\boxed{B} C", "B"), 1);
  EXPECT_THROW(make_scorer("boxed_boxed_exact"), Error);
  EXPECT_THROW(make_scorer("boxed_"), Error);
}

char letter(const std::string& response) { return chosen_letter(response, 4).value_or('-'); }

TEST(ChosenLetter, PrefersTheBoxThenTheNamedOneThenTheLastCapital) {
  EXPECT_EQ(letter("The answer is A, but \\boxed{C}"), 'C');
  EXPECT_EQ(letter("\\boxed{\\text{(d)}}"), 'D');
  EXPECT_EQ(letter("**Answer: B**. Neither C nor D fits"), 'B');
  EXPECT_EQ(letter("the correct option is (c)."), 'C');
  EXPECT_EQ(letter("Answer: $D$"), 'D');
  EXPECT_EQ(letter("First answer: A. Better answer: B"), 'B');
  EXPECT_EQ(letter("not B but C"), 'C');
  EXPECT_EQ(letter("<think>Answer: A</think> Answer: D"), 'D');
}

TEST(ChosenLetter, TakesNoLetterOfAWordAndNoneBeyondTheChoices) {
  EXPECT_EQ(letter("The answer is a mystery"), '-');
  EXPECT_EQ(letter("Because"), '-');
  EXPECT_EQ(letter("Answer: E"), '-');
  EXPECT_EQ(chosen_letter("Answer: E", 5), 'E');
  EXPECT_EQ(letter(""), '-');
}

TEST(MultipleChoice, TakesTheLabelAsLetterNumberOrObject) {
  const auto scorer = make_scorer("gpqa");
  EXPECT_EQ(scorer->score("Answer: B", "B"), 1);
  EXPECT_EQ(scorer->score("Answer: B", " b "), 1);
  EXPECT_EQ(scorer->score("Answer: B", 1), 1);
  EXPECT_EQ(scorer->score("Answer: B", "C"), 0);
  EXPECT_EQ(scorer->score("nothing", "C"), 0);
  EXPECT_EQ(scorer->score("Answer: F", {{"answer", "F"}, {"choices", 6}}), 1);
  EXPECT_EQ(scorer->score("Answer: B", {{"answer", 1}, {"choices", {"x", "y"}}}), 1);
  EXPECT_EQ(scorer->score("Answer: J", "J"), 1);
}

TEST(MultipleChoice, RefusesALabelThatIsNoChoice) {
  for (const char* label : {R"("AB")", R"("")", "-1", "26", "1.5", "null", "[0]",
                            R"({"choices":4})", R"({"answer":"E","choices":4})",
                            R"({"answer":"A","choices":27})", R"({"answer":"A","choices":"4"})"}) {
    EXPECT_EQ(refusal_of("gpqa", "Answer: A", Json::parse(label)), ErrorCode::kInvalidArgument)
        << label;
  }
}

TEST(TokenF1, IsTheHarmonicMeanOverWords) {
  const auto scorer = make_scorer("f1");
  EXPECT_EQ(scorer->score("The Cat.", "a cat"), 1);
  EXPECT_DOUBLE_EQ(scorer->score("red cat", "cat"), 2.0 / 3);
  EXPECT_DOUBLE_EQ(scorer->score("cat cat", "cat"), 2.0 / 3) << "each counts once";
  EXPECT_EQ(scorer->score("dog", "cat"), 0);
  EXPECT_EQ(scorer->score("", "cat"), 0);
  EXPECT_EQ(scorer->score("the", "a"), 1);
  EXPECT_EQ(scorer->score("blue", Json{"red", "blue"}), 1);
  EXPECT_EQ(scorer->score("7", 7), 1);
  EXPECT_EQ(squad_words("It's an  A-1,\nthe"), (std::vector<std::string>{"its", "a1"}));
  EXPECT_EQ(refusal_of("f1", "x", Json::array()), ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal_of("f1", "x", Json{{"a", 1}}), ErrorCode::kInvalidArgument);
}

struct Followed {
  const char* id;
  const char* kwargs;
  std::vector<std::string> right;
  std::vector<std::string> wrong;
};

std::vector<Followed> instructions() {
  return {
      {"change_case:capital_word_frequency",
       R"({"capital_relation":"at least","capital_frequency":2})",
       {"ONE TWO three"},
       {"ONE two", "one"}},
      {"change_case:english_capital", "{}", {"YES, 3!"}, {"Yes", "3"}},
      {"change_case:english_lowercase", "{}", {"yes, 3!"}, {"Yes", "3"}},
      {"count:numbers", R"({"N":2})", {"4 and 17"}, {"4", "4 5 6", "4a 5b"}},
      {"count:unique_word_count", R"({"N":3})", {"a b c"}, {"a A b"}},
      {"count:word_count_range",
       R"({"min_words":2,"max_words":3})",
       {"a b", "a b c"},
       {"a", "a b c d"}},
      {"detectable_content:number_placeholders",
       R"({"num_placeholders":2})",
       {"[name], [place]"},
       {"[name]", "[] []"}},
      {"detectable_content:postscript",
       R"({"postscript_marker":"P.S."})",
       {"Bye. p.s. me"},
       {"Bye"}},
      {"detectable_format:json_format",
       "{}",
       {"{\"a\": [1]}", "```json\n{}\n```"},
       {"{a}", "it is {}"}},
      {"detectable_format:multiple_sections",
       R"({"section_spliter":"Section","num_sections":2.0})",
       {"Section 1 x Section 2 y"},
       {"Section 1", "Section a Section b"}},
      {"detectable_format:number_bullet_lists",
       R"({"num_bullets":2})",
       {"* a\n- b"},
       {"* a", "* a\n* b\n* c", "*a\n*b"}},
      {"detectable_format:number_highlighted_sections",
       R"({"num_highlights":2})",
       {"*a* **b**", "*a* *b* *c*"},
       {"*a*", "** **", "*a\nb*"}},
      {"detectable_format:title", "{}", {"<<Ode>> text"}, {"<Ode>", "<<>>", "<<a\nb>>"}},
      {"format:no_whitespace", "{}", {"abc"}, {"a b", "a\nb"}},
      {"keywords:existence", R"({"keywords":["red","Cat"]})", {"a RED cat"}, {"red"}},
      {"keywords:forbidden_words", R"({"forbidden_words":["cat"]})", {"concatenate"}, {"a Cat."}},
      {"keywords:frequency",
       R"({"keyword":"cat","frequency":2,"relation":"less than"})",
       {"cat", "cats cat"},
       {"cat Cat"}},
      {"keywords:letter_frequency",
       R"({"letter":"E","let_frequency":2,"let_relation":"at least"})",
       {"eel"},
       {"el"}},
      {"length_constraints:number_paragraphs",
       R"({"num_paragraphs":2})",
       {"a\n***\nb"},
       {"a", "a***b***c"}},
      {"length_constraints:number_sentences",
       R"({"num_sentences":2,"relation":"at least"})",
       {"One. Two!", "One? Two"},
       {"Pi is 3.14."}},
      {"length_constraints:number_words",
       R"({"num_words":3,"relation":"less than"})",
       {"a b"},
       {"a b c"}},
      {"punctuation:no_comma", "{}", {"a b"}, {"a, b"}},
      {"startend:end_checker",
       R"({"end_phrase":"Any questions?"})",
       {"Well. any questions? ", "\"Any questions?\""},
       {"Any questions? No."}},
      {"startend:quotation", "{}", {" \"a\" "}, {"\"a", "\""}},
  };
}

Json label_of(const std::vector<Followed>& all) {
  Json ids = Json::array();
  Json kwargs = Json::array();
  for (const Followed& x : all) {
    ids.push_back(x.id);
    kwargs.push_back(Json::parse(x.kwargs));
  }
  return {{"instruction_id_list", ids}, {"kwargs", kwargs}};
}

TEST(Instructions, AreFollowedOrNot) {
  const auto scorer = make_scorer("ifbench");
  std::vector<std::string_view> tested;
  for (const Followed& x : instructions()) {
    tested.emplace_back(x.id);
    for (const auto& text : x.right)
      EXPECT_EQ(scorer->score(text, label_of({x})), 1) << x.id << text;
    for (const auto& text : x.wrong)
      EXPECT_EQ(scorer->score(text, label_of({x})), 0) << x.id << text;
    EXPECT_EQ(scorer->score("  ", label_of({x})), 0) << x.id;
  }
  EXPECT_EQ(tested, instruction_ids());
}

TEST(Instructions, AllOfALabelCount) {
  const Followed no_comma{"punctuation:no_comma", "{}", {}, {}};
  const Followed lower{"change_case:english_lowercase", R"({"other":null})", {}, {}};
  const auto scorer = make_scorer("ifbench");
  EXPECT_EQ(scorer->score("a b", label_of({no_comma, lower})), 1);
  EXPECT_EQ(scorer->score("a, b", label_of({no_comma, lower})), 0);
  EXPECT_EQ(scorer->score("A b", label_of({no_comma, lower})), 0);
}

TEST(Instructions, RefuseWhatTheyCannotCheck) {
  EXPECT_EQ(refusal_of("ifbench", "a", label_of({{"language:response_language", "{}", {}, {}}})),
            ErrorCode::kUnimplemented);
  for (const char* label :
       {R"("punctuation:no_comma")", "{}", R"({"instruction_id_list":[]})",
        R"({"instruction_id_list":[1]})",
        R"({"instruction_id_list":["punctuation:no_comma"],"kwargs":[{},{}]})",
        R"({"instruction_id_list":["count:numbers"],"kwargs":[{"N":null}]})",
        R"({"instruction_id_list":["count:numbers"],"kwargs":[{"N":-1}]})",
        R"({"instruction_id_list":["count:numbers"],"kwargs":[{"N":1e300}]})",
        R"({"instruction_id_list":["count:numbers"],"kwargs":[{"N":"2"}]})",
        R"({"instruction_id_list":["keywords:existence"],"kwargs":[{"keywords":[]}]})",
        R"({"instruction_id_list":["length_constraints:number_words"],
            "kwargs":[{"num_words":2,"relation":"about"}]})"}) {
    EXPECT_EQ(refusal_of("ifbench", "a", Json::parse(label)), ErrorCode::kInvalidArgument) << label;
  }
}

// A rule that is not linear takes hours on these; the test's time limit ends it.
TEST(TextRules, StayLinearOnHostileText) {
  for (const std::string unit : {"[", "*", "<<", "answer ", "\\boxed{", "\\boxed{A} ", "a ", ". ",
                                 "***", "{", "\"", "(A) "}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    for (const char* type : {"gpqa", "boxed_gpqa", "f1", "boxed_f1"}) {
      EXPECT_LE(make_scorer(type)->score(text, "C"), 0.5) << type << unit;
    }
    for (const Followed& x : instructions()) {
      const double score = make_scorer("ifbench")->score(text, label_of({x}));
      EXPECT_TRUE(score == 0 || score == 1) << x.id;
    }
  }
}

}  // namespace
}  // namespace nibble
