#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "core/tokenizer/tokenizer.h"

namespace nibble {

/// What one conversation is rendered with. Borrows; null pointers are None in the template.
struct ChatRequest {
  const nlohmann::ordered_json* messages = nullptr;   ///< array of {"role", "content", ...}
  const nlohmann::ordered_json* tools = nullptr;      ///< array of JSON schemas
  const nlohmann::ordered_json* variables = nullptr;  ///< object: enable_thinking, documents, ...
  bool add_generation_prompt = false;
  std::optional<std::tm> now;  ///< for strftime_now; nullopt: the machine's local time
};

/// A Hugging Face chat template: Jinja as Transformers sets it up (trim_blocks, lstrip_blocks, no
/// escaping, tojson in key order, raise_exception, strftime_now, {% generation %}). A subset of
/// ours that runs nothing but the template: unknown filters, tests and statements are refused when
/// it is parsed; time, memory, nesting and output are bounded.
///
/// Immutable; any thread may call render(). Every error is Error{kInvalidArgument}
/// "<name> line <n>: <why>", the template's own raise_exception included.
class ChatTemplate {
 public:
  /// `source` has at most 1 MiB. `special_tokens` become variables: bos_token, eos_token, ...
  ChatTemplate(std::string_view source, std::string name,
               std::map<std::string, std::string> special_tokens = {});
  /// The tokenizer's template `name`. Throws Error{kFailedPrecondition} if it has none.
  static ChatTemplate of(const Tokenizer& tokenizer, const std::string& name = "default");

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// The prompt text. JSON integers must fit into 64 bits with sign.
  std::string render(const ChatRequest& request) const;

  /// Renders with exactly these variables (an object) and the special tokens: for templates that
  /// are not chats. Errors as in render().
  std::string render_variables(const nlohmann::ordered_json& variables,
                               std::optional<std::tm> now = std::nullopt) const;

 private:
  struct Parsed;
  std::unique_ptr<Parsed> parsed_;
};

}  // namespace nibble
