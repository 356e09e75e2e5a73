#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tokenizer/jinja_value.h"

namespace nibble::jinja {

struct Filter;
struct Test;
struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class Op {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kFloorDiv,
  kMod,
  kPow,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kIn,
  kNotIn,
};

/// Arguments as written.
struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> keywords;
};

struct Expr {
  enum class Kind {
    kLiteral,      ///< literal
    kName,         ///< text
    kList,         ///< children
    kTuple,        ///< children
    kDict,         ///< children: key, value, key, value, ...
    kNegative,     ///< children[0]
    kPositive,     ///< children[0]
    kNot,          ///< children[0]
    kAnd,          ///< children[0], children[1]
    kOr,           ///< children[0], children[1]
    kBinary,       ///< children[0] ops[0] children[1]
    kCompare,      ///< children[0] ops[0] children[1] ops[1] children[2] ...
    kConcat,       ///< children joined with ~
    kConditional,  ///< children[0] if children[1] else children[2] (null: undefined)
    kAttribute,    ///< children[0].text
    kItem,         ///< children[0][children[1]]
    kSlice,        ///< children[0][children[1]:children[2]:children[3]], nulls allowed
    kCall,         ///< children[0](arguments)
    kFilter,       ///< children[0] | filter(arguments); children[0] null in {% set %} blocks
    kTest,         ///< children[0] is test(arguments)
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  int depth = 1;  ///< levels of expressions below, this one included; bounded by the parser
  std::string text;
  Value literal;
  std::vector<ExprPtr> children;
  std::vector<Op> ops;
  CallArguments arguments;
  const Filter* filter = nullptr;
  const Test* test = nullptr;
};

/// What {% set %} and {% for %} assign to.
struct Target {
  std::string name;
  std::string attribute;      ///< name.attribute of a namespace; empty: the variable
  std::vector<Target> items;  ///< not empty: unpacks, name is unused
};

struct Statement;
using Block = std::vector<Statement>;

struct Branch {
  ExprPtr condition;  ///< null: else
  Block body;
};

struct Parameter {
  std::string name;
  ExprPtr absent;  ///< null: undefined when not given
};

struct Statement {
  enum class Kind {
    kData,      ///< text
    kPrint,     ///< value
    kIf,        ///< branches
    kFor,       ///< target, value, condition (may be null), body, otherwise
    kSet,       ///< target, value
    kSetBlock,  ///< target, value (filter chain or null), body
    kMacro,     ///< text (name), parameters, body
    kScope,     ///< parameters (assignments), body: {% with %} and {% generation %}
    kFilter,    ///< value (filter chain), body
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kData;
  int line = 0;
  std::string text;
  ExprPtr value;
  ExprPtr condition;
  Target target;
  std::vector<Branch> branches;
  std::vector<Parameter> parameters;
  Block body;
  Block otherwise;
};

}  // namespace nibble::jinja
