#include "core/tokenizer/chat_template.h"

#include <limits>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/tokenizer/jinja_evaluator.h"
#include "core/tokenizer/jinja_parser.h"
#include "core/tokenizer/utf8.h"

namespace nibble {

using jinja::Runtime;
using jinja::Value;

struct ChatTemplate::Parsed {
  std::string name;
  std::map<std::string, std::string> special_tokens;
  jinja::Block block;
};

namespace {

constexpr size_t kMaxSourceBytes = 1 << 20;
constexpr int kMaxInputDepth = 128;

Value to_value(Runtime& runtime, const OrderedJson& json, int depth) {
  if (depth > kMaxInputDepth) runtime.error("the input is nested deeper than {}", kMaxInputDepth);
  switch (json.type()) {
    case OrderedJson::value_t::null:
      return {};
    case OrderedJson::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case OrderedJson::value_t::number_unsigned:
      if (json.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
        runtime.error("the integer {} of the input is too large", json.get<uint64_t>());
      }
      return Value::integer(json.get<int64_t>());
    case OrderedJson::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case OrderedJson::value_t::number_float:
      return Value::number(json.get<double>());
    case OrderedJson::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (find_invalid_utf8(text) != std::string_view::npos) {
        runtime.error("a text of the input is not UTF-8");
      }
      return runtime.text(text);
    }
    case OrderedJson::value_t::array: {
      jinja::List items;
      for (const OrderedJson& item : json) items.push_back(to_value(runtime, item, depth + 1));
      return runtime.list(std::move(items));
    }
    case OrderedJson::value_t::object: {
      jinja::Dict dict;
      for (const auto& [key, item] : json.items()) {
        dict.set(runtime.text(key), to_value(runtime, item, depth + 1));
      }
      return runtime.dict(std::move(dict));
    }
    default:
      runtime.error("the input holds a JSON value of an unknown type");
  }
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, std::string name,
                           std::map<std::string, std::string> special_tokens) {
  if (source.size() > kMaxSourceBytes) {
    fail(ErrorCode::kInvalidArgument, "{}: the template has more than {} bytes", name,
         kMaxSourceBytes);
  }
  if (find_invalid_utf8(source) != std::string_view::npos) {
    fail(ErrorCode::kInvalidArgument, "{}: the template is not UTF-8", name);
  }
  jinja::Block block = jinja::parse_template(source, name);
  parsed_ = std::make_unique<Parsed>(
      Parsed{std::move(name), std::move(special_tokens), std::move(block)});
}

ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

ChatTemplate ChatTemplate::of(const Tokenizer& tokenizer, const std::string& name) {
  const auto& templates = tokenizer.chat_templates();
  const auto found = templates.find(name);
  if (found == templates.end()) {
    fail(ErrorCode::kFailedPrecondition,
         "the tokenizer has no chat template '{}'; add chat_template.jinja to its directory", name);
  }
  return ChatTemplate(found->second, "chat template '" + name + "'", tokenizer.special_tokens());
}

std::string ChatTemplate::render(const ChatRequest& request) const {
  const auto or_null = [](const OrderedJson* json) {
    return json != nullptr ? *json : OrderedJson();
  };
  OrderedJson variables = {{"messages", or_null(request.messages)},
                           {"tools", or_null(request.tools)},
                           {"documents", nullptr},
                           {"add_generation_prompt", request.add_generation_prompt}};
  if (request.variables != nullptr) {
    if (!request.variables->is_object()) {
      fail(ErrorCode::kInvalidArgument, "{}: the extra variables must be a JSON object",
           parsed_->name);
    }
    for (const auto& [key, value] : request.variables->items()) variables[key] = value;
  }
  return render_variables(variables, request.now);
}

std::string ChatTemplate::render_variables(const OrderedJson& variables,
                                           std::optional<std::tm> now) const {
  if (!variables.is_object()) {
    fail(ErrorCode::kInvalidArgument, "{}: the variables must be a JSON object", parsed_->name);
  }
  Runtime runtime(parsed_->name, jinja::Limits{});
  runtime.now = now;
  std::map<std::string_view, Value> values;
  for (const auto& [name, content] : parsed_->special_tokens) values[name] = runtime.text(content);
  for (auto item = variables.begin(); item != variables.end(); ++item) {
    values[item.key()] = to_value(runtime, item.value(), 0);
  }
  return jinja::Evaluator(runtime, std::move(values)).render(parsed_->block);
}

}  // namespace nibble
