#pragma once

#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble::test {

/// Path of a file under tests/oracles.
std::string oracle_path(const std::string& name);

/// The lines of a JSONL oracle, split on \n only (texts contain U+2028 and U+0085).
std::vector<OrderedJson> read_oracle_lines(const std::string& name);

/// The content of a gzip file.
std::string gunzip(const std::string& path);

/// Qwen3's tokenizer, loaded once per process.
const Tokenizer& qwen_tokenizer();

}  // namespace nibble::test
