#include "core/tokenizer/jinja_parser.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/tokenizer/jinja_expression_parser.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxNesting = 100;

class TemplateParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block run() {
    Block block = parse_block({});
    if (!at(Token::Type::kEnd)) error(fmt::format("unexpected '{}'", peek(1).text));
    return block;
  }

 private:
  /// Statements up to a tag that starts with one of `ends`; stands on that tag's "{%" then.
  Block parse_block(std::initializer_list<std::string_view> ends) {
    if (++nesting_ > kMaxNesting) error("tags are nested too deep");
    Block block;
    while (!at(Token::Type::kEnd)) {
      if (at(Token::Type::kData)) {
        Statement& data = block.emplace_back();
        data.line = peek().line;
        data.text = next().text;
      } else if (at(Token::Type::kVariableBegin)) {
        next();
        block.push_back(start(Statement::Kind::kPrint));
        block.back().value = parse_tuple(true);
        if (!at(Token::Type::kVariableEnd)) error(fmt::format("unexpected '{}'", peek().text));
        next();
      } else {
        const bool ended = peek(1).type == Token::Type::kName &&
                           std::find(ends.begin(), ends.end(), peek(1).text) != ends.end();
        if (ended) break;
        next();
        block.push_back(parse_statement());
      }
    }
    if (at(Token::Type::kEnd) && ends.size() > 0) {
      error(fmt::format("the template ends where '{}' is missing", *(ends.end() - 1)));
    }
    --nesting_;
    return block;
  }

  Statement start(Statement::Kind kind) const {
    Statement statement;
    statement.kind = kind;
    statement.line = peek().line;
    return statement;
  }

  void end_tag() {
    if (!at(Token::Type::kBlockEnd)) error(fmt::format("unexpected '{}' in a tag", peek().text));
    next();
  }

  /// "{% <name> %}", which the caller knows to stand here.
  void closing_tag(std::string_view name) {
    next();
    expect_name(name);
    end_tag();
  }

  Statement parse_statement() {
    if (at_name("if")) return parse_if();
    if (at_name("for")) return parse_for();
    if (at_name("set")) return parse_set();
    if (at_name("macro")) return parse_macro();
    if (at_name("with")) return parse_with();
    if (at_name("filter")) return parse_filter_block();
    if (at_name("generation")) {
      Statement statement = start(Statement::Kind::kScope);
      next();
      end_tag();
      statement.body = parse_block({"endgeneration"});
      closing_tag("endgeneration");
      return statement;
    }
    if (at_name("break") || at_name("continue")) return parse_jump();
    error(fmt::format("unknown statement '{}'", peek().text));
  }

  Statement parse_jump() {
    if (loops_ == 0) error(fmt::format("'{}' outside a loop", peek().text));
    Statement statement =
        start(at_name("break") ? Statement::Kind::kBreak : Statement::Kind::kContinue);
    next();
    end_tag();
    return statement;
  }

  Statement parse_if() {
    Statement statement = start(Statement::Kind::kIf);
    while (true) {
      next();  // if or elif
      Branch& branch = statement.branches.emplace_back();
      branch.condition = parse_tuple(false);
      end_tag();
      branch.body = parse_block({"elif", "else", "endif"});
      next();
      if (at_name("elif")) continue;
      if (skip_name("else")) {
        end_tag();
        statement.branches.emplace_back().body = parse_block({"endif"});
        next();
      }
      expect_name("endif");
      end_tag();
      return statement;
    }
  }

  Statement parse_for() {
    Statement statement = start(Statement::Kind::kFor);
    next();
    statement.target = parse_targets(false);
    expect_name("in");
    statement.value = parse_tuple(false);
    if (skip_name("if")) statement.condition = parse_expression();
    if (at_name("recursive")) error("recursive loops are not supported");
    end_tag();
    ++loops_;
    statement.body = parse_block({"else", "endfor"});
    --loops_;
    next();
    if (skip_name("else")) {
      end_tag();
      statement.otherwise = parse_block({"endfor"});
      next();
    }
    expect_name("endfor");
    end_tag();
    return statement;
  }

  Statement parse_set() {
    Statement statement = start(Statement::Kind::kSet);
    next();
    statement.target = parse_targets(true);
    if (skip_operator("=")) {
      statement.value = parse_tuple(true);
      end_tag();
      return statement;
    }
    statement.kind = Statement::Kind::kSetBlock;
    statement.value = parse_filter_chain(false);
    end_tag();
    statement.body = parse_inner_block("endset");
    return statement;
  }

  Statement parse_macro() {
    Statement statement = start(Statement::Kind::kMacro);
    next();
    statement.text = expect_identifier();
    expect_operator("(");
    while (!at_operator(")")) {
      Parameter& parameter = statement.parameters.emplace_back();
      parameter.name = expect_identifier();
      if (skip_operator("=")) {
        parameter.absent = parse_expression();
      } else if (statement.parameters.size() > 1 &&
                 statement.parameters[statement.parameters.size() - 2].absent != nullptr) {
        error("a parameter without default follows one with a default");
      }
      if (!at_operator(")")) expect_operator(",");
    }
    next();
    end_tag();
    ++macros_;
    statement.body = parse_inner_block("endmacro");
    --macros_;
    return statement;
  }

  Statement parse_with() {
    Statement statement = start(Statement::Kind::kScope);
    next();
    while (!at(Token::Type::kBlockEnd)) {
      Parameter& parameter = statement.parameters.emplace_back();
      parameter.name = expect_identifier();
      expect_operator("=");
      parameter.absent = parse_expression();
      if (!at(Token::Type::kBlockEnd)) expect_operator(",");
    }
    end_tag();
    statement.body = parse_block({"endwith"});
    closing_tag("endwith");
    return statement;
  }

  Statement parse_filter_block() {
    Statement statement = start(Statement::Kind::kFilter);
    next();
    statement.value = parse_filter_chain(true);
    end_tag();
    statement.body = parse_inner_block("endfilter");
    return statement;
  }

  /// A body whose output goes elsewhere: it cannot leave the loop around it.
  Block parse_inner_block(std::string_view end) {
    const int outer_loops = std::exchange(loops_, 0);
    Block body = parse_block({end});
    loops_ = outer_loops;
    closing_tag(end);
    return body;
  }

  Target parse_targets(bool with_attribute) {
    std::vector<Target> items;
    bool tuple = false;
    do {
      if (!items.empty() && (at_name("in") || at_operator("=") || at_operator(")"))) break;
      items.push_back(parse_target(with_attribute));
      tuple = tuple || at_operator(",");
    } while (skip_operator(","));
    if (!tuple) return std::move(items[0]);
    Target target;
    target.items = std::move(items);
    return target;
  }

  Target parse_target(bool with_attribute) {
    if (++nesting_ > kMaxNesting) error("targets are nested too deep");
    Target target;
    if (skip_operator("(")) {
      target = parse_targets(with_attribute);
      expect_operator(")");
    } else {
      target.name = expect_identifier();
      if (with_attribute && skip_operator(".")) target.attribute = expect_identifier();
      static constexpr std::string_view kReserved[] = {"true",  "false", "none", "True",
                                                       "False", "None",  "loop"};
      const auto* end = std::end(kReserved);
      if (target.attribute.empty() && std::find(std::begin(kReserved), end, target.name) != end) {
        error(fmt::format("cannot assign to '{}'", target.name));
      }
    }
    --nesting_;
    return target;
  }

  int nesting_ = 0;
  int loops_ = 0;  // around the current tag
};

}  // namespace

Block parse_template(std::string_view source, std::string_view name) {
  return TemplateParser(tokenize(source, name), name).run();
}

}  // namespace nibble::jinja
