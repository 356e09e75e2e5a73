#include "rollout/reward/math/latex_grammar.h"

#include <algorithm>
#include <utility>

#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/math/symbol_shape.h"

namespace nibble::math {
namespace {

constexpr std::string_view kTwoSigns = "+-";  // names the pair that a plus-minus stands for

bool is_pair(const Expression& x) { return x->op == Op::kSet && x->name == kTwoSigns; }

Expression pair_of(Expression a, Expression b) {
  return make_node(Op::kSet, {std::move(a), std::move(b)}, std::string(kTwoSigns));
}

Expression without_pair(const Expression& x) {
  return is_pair(x) ? make_node(Op::kSet, x->args) : x;
}

Expression as_set(const Expression& x) {
  if (is_set(x)) return without_pair(x);
  if (x->op == Op::kTuple) return make_node(Op::kSet, x->args);
  return make_node(Op::kSet, {x});
}

bool is_relation_sign(const Token& token) {
  if (token.kind != TokenKind::kOperator) return false;
  return token.text == "=" || token.text == "!=" || token.text == "<" || token.text == "<=" ||
         token.text == ">" || token.text == ">=" || token.text == "~=" || token.text == "in";
}

/// a < b, where a may be a chain that b goes on.
Expression related(const Expression& left, const std::string& sign, const Expression& right) {
  if (!is_relation(left)) return make_node(Op::kRelation, {left, right}, sign);
  std::vector<Expression> chain = {left};
  if (left->op == Op::kRelations) chain = left->args;
  chain.push_back(make_node(Op::kRelation, {chain.back()->args[1], right}, sign));
  return make_node(Op::kRelations, std::move(chain));
}

}  // namespace

Expression scalar(Expression x) {
  if (!is_scalar(x)) throw LatexGrammar::NotRead();
  return x;
}

Expression LatexGrammar::whole() {
  std::vector<Elements> lists = groups();
  if (token().kind != TokenKind::kEnd) throw NotRead();
  Elements all;
  bool has_pairs = false;  // 1,2;3,4
  for (Elements& list : lists) {
    has_pairs = has_pairs || (lists.size() > 1 && list.size() > 1);
    all.insert(all.end(), list.begin(), list.end());
  }
  if (all.size() == 1) return all[0];
  // x = 1, 2 gives x both values; x = 1, y = 2 is two equations.
  const bool is_assignment = all[0]->op == Op::kRelation && all[0]->name == "=" &&
                             is_of_symbols(all[0]->args[0]) &&
                             std::none_of(all.begin() + 1, all.end(), is_relation);
  if (is_assignment) {
    const Expression variable = all[0]->args[0];
    all[0] = all[0]->args[1];
    return make_node(Op::kRelation, {variable, make_node(Op::kSet, std::move(all))}, "=");
  }
  if (has_pairs) {
    all.clear();
    for (Elements& list : lists) all.push_back(make_node(Op::kTuple, std::move(list)));
  }
  return make_node(Op::kSet, std::move(all));
}

std::vector<LatexGrammar::Elements> LatexGrammar::groups() {
  std::vector<Elements> lists(1);
  int count = 0;
  while (true) {
    for (Expression& x : element()) lists.back().push_back(std::move(x));
    if (++count > kMaxElements) throw NotRead();
    if (token().kind == TokenKind::kSemicolon) {
      lists.emplace_back();
    } else if (token().kind != TokenKind::kComma) {
      return lists;
    }
    ++at_;
  }
}

LatexGrammar::Elements LatexGrammar::element() {
  const Level level(*this);
  Expression x = relation();
  if (is_pair(x)) return x->args;
  return {std::move(x)};
}

Expression LatexGrammar::relation() {
  Expression left = difference();
  while (is_relation_sign(token())) {
    const std::string sign = take().text;
    Expression right = without_pair(difference());
    left = without_pair(left);
    if (sign == "~=") {
      if (is_of_symbols(left)) left = right;  // what is written before it is exact
    } else if (sign == "in") {
      if (!is_of_symbols(left)) throw NotRead();
      left = make_node(Op::kRelation, {left, as_set(right)}, "=");
    } else {
      left = related(left, sign, right);
    }
  }
  return left;
}

Expression LatexGrammar::difference() {
  Expression left = set_union();
  while (take_operator("setminus")) {
    left = make_node(Op::kDifference, {as_set(left), as_set(set_union())});
  }
  return left;
}

Expression LatexGrammar::set_union() {
  Expression left = intersection();
  if (!token().is_operator("cup")) return left;
  Elements parts = {as_set(left)};
  while (take_operator("cup")) parts.push_back(as_set(intersection()));
  return make_node(Op::kUnion, std::move(parts));
}

Expression LatexGrammar::intersection() {
  Expression left = set_operand();
  if (!token().is_operator("cap")) return left;
  Elements parts = {as_set(left)};
  while (take_operator("cap")) parts.push_back(as_set(set_operand()));
  return make_node(Op::kIntersection, std::move(parts));
}

Expression LatexGrammar::set_operand() {
  if (take_operator("pm")) {
    const Expression x = scalar(sum());
    return pair_of(negate(x), x);
  }
  const Expression left = sum();
  if (!take_operator("pm")) return left;
  const Expression right = scalar(sum());
  return pair_of(add(scalar(left), right), add(left, negate(right)));
}

/// What stands in brackets: a group, an interval, a tuple or a set.
Expression LatexGrammar::bracketed() {
  const std::string open = take().text;
  const bool is_brace = open.back() == '{';
  if (is_brace && token().kind == TokenKind::kClose) {
    ++at_;
    return make_node(Op::kSet, {});
  }
  const int bars = std::exchange(open_bars_, 0);
  std::vector<Elements> lists = groups();
  open_bars_ = bars;
  if (token().kind != TokenKind::kClose) throw NotRead();
  const std::string close = take().text;
  const bool closes_brace = close.back() == '}';
  if (is_brace != closes_brace) throw NotRead();
  if (is_brace && open.size() != close.size()) throw NotRead();
  const bool is_round = open[0] == '(';
  const bool is_even = is_brace || is_round == (close[0] == ')');
  Elements all;
  for (Elements& list : lists) all.insert(all.end(), list.begin(), list.end());
  if (all.size() == 1 && is_even) return all[0];
  if (is_brace) return make_node(Op::kSet, std::move(all));
  if (lists.size() == 1 && all.size() == 2 && is_scalar(all[0]) && is_scalar(all[1])) {
    return interval_or_tuple(all[0], all[1], is_round, close[0] == ')');
  }
  if (!is_even) throw NotRead();
  return make_node(Op::kTuple, std::move(all));
}

const Token& LatexGrammar::token(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

Token LatexGrammar::take() {
  Token result = token();
  if (result.kind == TokenKind::kEnd) throw NotRead();
  ++at_;
  return result;
}

bool LatexGrammar::take_operator(std::string_view text) {
  if (!token().is_operator(text)) return false;
  ++at_;
  return true;
}

void LatexGrammar::expect(TokenKind kind, std::string_view text) {
  if (!token().is(kind, text)) throw NotRead();
  ++at_;
}

void LatexGrammar::enter() {
  if (++depth_ > kMaxDepth || ++steps_ > kMaxParseSteps) throw NotRead();
}

}  // namespace nibble::math
