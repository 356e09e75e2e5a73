#include "core/config/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxDepth = 32;
constexpr int kMaxValues = 1 << 16;

/// Builds a YamlNode from the parser's events; stops by throwing Error.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string_view name) : name_(name) {}

  YamlNode take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) refuse(mark, "a second YAML document; keep one per file");
  }
  void OnDocumentEnd() override {}
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    refuse(mark, "a YAML alias (*name); write the value out");
  }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(make(mark, "", anchor, YamlNode::Kind::kNull));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode node = make(mark, tag, anchor, YamlNode::Kind::kScalar);
    node.is_quoted = tag == "!";
    node.text = value;
    add(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    push(make(mark, tag, anchor, YamlNode::Kind::kList), mark);
  }
  void OnSequenceEnd() override { pop(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    push(make(mark, tag, anchor, YamlNode::Kind::kMap), mark);
  }
  void OnMapEnd() override { pop(); }

 private:
  struct Frame {
    YamlNode node;
    bool has_key = false;
    YamlEntry entry;  // its value is still to come if has_key
    std::set<std::string> keys;
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, std::string_view what) const {
    fail(ErrorCode::kInvalidArgument, "{}: {}", yaml_place(name_, mark.line + 1), what);
  }

  YamlNode make(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                YamlNode::Kind kind) {
    if (anchor != 0) refuse(mark, "a YAML anchor (&name); write the value out");
    if (!tag.empty() && tag != "?" && tag != "!") refuse(mark, "a YAML tag (!name); remove it");
    if (++num_values_ > kMaxValues) refuse(mark, "more values than a configuration may have");
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    return node;
  }

  void push(YamlNode node, const YAML::Mark& mark) {
    if (stack_.size() >= kMaxDepth) refuse(mark, "nested deeper than 32 levels");
    if (!stack_.empty() && stack_.back().node.kind == YamlNode::Kind::kMap &&
        !stack_.back().has_key) {
      refuse(mark, "a map key must be plain text");
    }
    stack_.push_back({.node = std::move(node)});
  }

  void pop() {
    YamlNode node = std::move(stack_.back().node);
    stack_.pop_back();
    add(std::move(node));
  }

  void add(YamlNode node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = stack_.back();
    if (frame.node.kind == YamlNode::Kind::kList) {
      frame.node.list.push_back(std::move(node));
    } else if (frame.has_key) {
      if (node.kind == YamlNode::Kind::kNull) node.line = frame.entry.line;
      frame.entry.value = std::move(node);
      frame.node.map.push_back(std::move(frame.entry));
      frame.has_key = false;
    } else {
      const std::string place = yaml_place(name_, node.line);
      if (node.kind != YamlNode::Kind::kScalar) {
        fail(ErrorCode::kInvalidArgument, "{}: a map key must be plain text", place);
      }
      if (!frame.keys.insert(node.text).second) {
        fail(ErrorCode::kInvalidArgument, "{}: {}: duplicate key; keep one of them", place,
             path_to(node.text));
      }
      frame.entry = {.key = node.text, .line = node.line, .value = {}};
      frame.has_key = true;
    }
  }

  /// The dotted path of `key` in the map that is open.
  std::string path_to(const std::string& key) const {
    std::string path;
    for (const Frame& frame : stack_) {
      if (frame.node.kind == YamlNode::Kind::kList) {
        path += fmt::format("{}.", frame.node.list.size());
      } else if (frame.has_key) {
        path += frame.entry.key + ".";
      }
    }
    return path + key;
  }

  const std::string_view name_;
  int num_documents_ = 0;
  int num_values_ = 0;
  std::vector<Frame> stack_;
  YamlNode root_;
};

void refuse_control_characters(std::string_view text, std::string_view name) {
  int line = 1;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') ++line;
    if ((byte < 0x20 && c != '\n' && c != '\t' && c != '\r') || byte == 0x7f) {
      fail(ErrorCode::kInvalidArgument, "{}: control character 0x{:02x}; is this a text file?",
           yaml_place(name, line), byte);
    }
  }
}

}  // namespace

std::string yaml_place(std::string_view name, int line) {
  return name.starts_with("--") ? std::string(name) : fmt::format("{}:{}", name, line);
}

YamlNode parse_yaml(std::string_view text, std::string_view name) {
  if (static_cast<int64_t>(text.size()) > kMaxYamlBytes) {
    fail(ErrorCode::kInvalidArgument, "{}: {} bytes; a configuration may have at most {}", name,
         text.size(), kMaxYamlBytes);
  }
  refuse_control_characters(text, name);
  // yaml-cpp 0.7 takes a quote that never closes; with an end-of-document line it refuses it.
  std::istringstream stream(fmt::format("{}\n...\n", text));
  TreeBuilder builder(name);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    fail(ErrorCode::kInvalidArgument, "{}: not valid YAML: {}",
         yaml_place(name, error.mark.line + 1), error.msg);
  }
  return builder.take();
}

}  // namespace nibble
