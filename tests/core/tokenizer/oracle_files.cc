#include "tests/core/tokenizer/oracle_files.h"

#include <zlib.h>

#include <stdexcept>

#include "core/base/file.h"

namespace nibble::test {

std::string oracle_path(const std::string& name) {
  return std::string(NIBBLE_SOURCE_DIR "/tests/oracles/") + name;
}

std::vector<OrderedJson> read_oracle_lines(const std::string& name) {
  const std::string text = read_file(oracle_path(name), 64 << 20);
  std::vector<OrderedJson> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(parse_ordered_json(std::string_view(text).substr(begin, end - begin), name));
    begin = end + 1;
  }
  if (lines.empty()) throw std::runtime_error(name + " is empty");
  return lines;
}

std::string gunzip(const std::string& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) throw std::runtime_error("cannot open " + path);
  std::string text;
  std::vector<char> buffer(1 << 20);
  int got = 0;
  while ((got = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()))) > 0) {
    text.append(buffer.data(), got);
  }
  gzclose(file);
  if (got < 0) throw std::runtime_error("cannot inflate " + path);
  return text;
}

const Tokenizer& qwen_tokenizer() {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(gunzip(oracle_path("tokenizer/tokenizer.json.gz")), "Qwen3");
  return tokenizer;
}

}  // namespace nibble::test
