#include "tests/rollout/server/request_mutator.h"

#include <fmt/format.h>

#include <array>
#include <string_view>
#include <utility>

namespace nibble {
namespace {

using Endpoint = std::pair<std::string_view, std::string_view>;

// Paths with bodies that are served.
constexpr std::array kServed = {
    Endpoint{"/v1/completions", R"({"prompt": [5, 6, 7], "max_tokens": 2, "temperature": 0})"},
    Endpoint{"/v1/completions",
             R"({"prompt": "value 1", "max_tokens": 3, "n": 2, "seed": 4, "stream": true})"},
    Endpoint{"/v1/completions",
             R"({"prompt": ["a", "b"], "max_tokens": 0, "echo": true, "logprobs": 1})"},
    Endpoint{"/v1/chat/completions",
             R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stop": ["x"]})"},
    Endpoint{"/generate", R"({"input_ids": [[1, 2], [3]], "sampling_params": {"n": 2,
             "max_new_tokens": 2, "temperature": 0.5}, "top_logprobs": 1, "stream": true})"}};

constexpr std::array<std::string_view, 18> kFields = {
    "prompt",    "max_tokens", "temperature", "top_p",    "top_k",           "n",
    "seed",      "stop",       "stream",      "logprobs", "stream_options",  "messages",
    "input_ids", "echo",       "priority",    "best_of",  "sampling_params", "stop_token_ids"};

constexpr std::array<std::string_view, 34> kValues = {"-1",
                                                      "0",
                                                      "NaN",
                                                      "-NaN",
                                                      "Infinity",
                                                      "-Infinity",
                                                      "nan",
                                                      "1e400",
                                                      "-1e400",
                                                      "1e308",
                                                      "1e-400",
                                                      "9223372036854775807",
                                                      "9223372036854775808",
                                                      "-9223372036854775809",
                                                      "18446744073709551616",
                                                      "0.1",
                                                      "-0.0",
                                                      "1.5",
                                                      "01",
                                                      "+1",
                                                      ".5",
                                                      "1.",
                                                      "0x10",
                                                      "1e",
                                                      "true",
                                                      "null",
                                                      "\"\"",
                                                      "[]",
                                                      "{}",
                                                      "[null]",
                                                      "\"\\ud800\"",
                                                      "\"\\u0000\"",
                                                      "[[[[1]]]]",
                                                      "\"\\x\""};

constexpr std::array<std::string_view, 16> kLengths = {"-1",
                                                       "-5",
                                                       "NaN",
                                                       "1e3",
                                                       "0x10",
                                                       "+5",
                                                       " 5 5",
                                                       "5,5",
                                                       "",
                                                       "99999999999",
                                                       "18446744073709551615",
                                                       "18446744073709551616",
                                                       "99999999999999999999999999",
                                                       "1.0",
                                                       "5;",
                                                       "\xff"};

constexpr std::array<std::string_view, 12> kChunkSizes = {
    "-1", "zz",      "0x5", "FFFFFFFFFFFFFFFF", "FFFFFFFFFFFFFFFFF", "7FFFFFFFFFFFFFFF", "", " 5",
    "5 ", "1000000", "0",   "5;ext=\"unended"};

constexpr std::array<std::string_view, 9> kHeaders = {"Content-Length: 5",
                                                      "Content-Length: 999",
                                                      "Transfer-Encoding: chunked",
                                                      "Transfer-Encoding: gzip, chunked",
                                                      "Host: other",
                                                      "Authorization: Bearer x",
                                                      "Expect: 100-continue",
                                                      "Connection: close, keep-alive",
                                                      "Content-Type: text/plain"};

// Never well-formed: a lone continuation, an overlong slash, a surrogate, beyond U+10FFFF, cut off.
constexpr std::array<std::string_view, 5> kBadUtf8 = {"\x80", "\xc0\xaf", "\xed\xa0\x80",
                                                      "\xf4\x90\x80\x80", "\xe2\x82"};

std::string post(std::string_view path, std::string_view body, std::string_view extra = {}) {
  return fmt::format("POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{}\r\n{}", path,
                     body.size(), extra, body);
}

}  // namespace

std::string RequestMutator::next() {
  switch (below(9)) {
    case 0:
      return garbage(2000);
    case 1:
      return with_bad_length();
    case 2:
      return with_bad_chunks();
    case 3:
      return with_doubled_header();
    case 4:
      return pipelined();
    case 5: {
      const std::string whole = valid();
      return whole.substr(0, below(whole.size()));
    }
    case 6:
      return mangled(valid());
    default:
      return with_bad_json();
  }
}

std::string RequestMutator::garbage(size_t most) {
  std::string bytes(1 + below(most), '\0');
  for (char& byte : bytes) byte = static_cast<char>(random_());
  return bytes;
}

std::string RequestMutator::json_value() {
  switch (below(6)) {
    case 0: {
      // From just too deep to what would end a parser that recurses.
      const size_t depth = size_t{1} << below(16);
      const bool is_closed = below(2) == 0;
      return std::string(depth, '[') + (is_closed ? std::string(depth, ']') : "");
    }
    case 1:
      return '"' + std::string(below(20'000), 'x') + '"';
    case 2:
      return '"' + std::string(one_of(kBadUtf8)) + '"';
    case 3:
      return std::to_string(random_());
    default:
      return std::string(one_of(kValues));
  }
}

std::string RequestMutator::json_body() {
  std::string body(one_of(kServed).second);
  const std::string field(one_of(kFields));
  const std::string value = json_value();
  const size_t at = body.find('"' + field + "\":");
  if (at != std::string::npos && below(4) != 0) {
    const size_t begin = body.find(':', at) + 1;
    const size_t end = body.find_first_of(",}", begin);
    body.replace(begin, end - begin, value);
  } else {  // added, perhaps for the second time
    body.insert(1, '"' + field + "\": " + value + ", ");
  }
  return body;
}

std::string RequestMutator::valid() {
  const auto& [path, body] = one_of(kServed);
  return below(8) == 0 ? "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" : post(path, body);
}

std::string RequestMutator::with_bad_length() {
  const auto& [path, body] = one_of(kServed);
  const std::string length = below(3) == 0
                                 ? std::to_string(body.size() + below(40) - below(body.size()))
                                 : std::string(one_of(kLengths));
  return fmt::format("POST {} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{}", path, length, body);
}

std::string RequestMutator::with_bad_chunks() {
  const auto& [path, body] = one_of(kServed);
  std::string request = fmt::format("POST {} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", path);
  for (size_t at = 0; at < body.size();) {
    const std::string_view piece = body.substr(at, 1 + below(30));
    at += piece.size();
    const std::string size = below(4) == 0   ? std::string(one_of(kChunkSizes))
                             : below(4) == 0 ? fmt::format("{:x}", piece.size() + 1 + below(9))
                                             : fmt::format("{:x}", piece.size());
    request += fmt::format("{}\r\n{}{}", size, piece, below(8) == 0 ? "" : "\r\n");
  }
  constexpr std::array<std::string_view, 5> kEnds = {"0\r\n\r\n", "0\r\n", "", "0\r\nX: y\r\n\r\n",
                                                     "00000000000000000000000\r\n\r\n"};
  return request + std::string(one_of(kEnds));
}

std::string RequestMutator::with_doubled_header() {
  const auto& [path, body] = one_of(kServed);
  std::string extra;
  for (size_t count = 1 + below(4); count > 0; --count) {
    extra += std::string(one_of(kHeaders)) + "\r\n";
  }
  // Sometimes more of them than a head may have.
  if (below(8) == 0) {
    for (int i = 0; i < 2'000; ++i) extra += fmt::format("X-{}: y\r\n", i);
  }
  return post(path, body, extra);
}

std::string RequestMutator::pipelined() {
  std::string requests;
  for (size_t count = 2 + below(4); count > 0; --count) {
    requests += below(3) == 0 ? with_bad_json() : valid();
  }
  return below(2) == 0 ? requests : mangled(std::move(requests));
}

std::string RequestMutator::with_bad_json() {
  std::string body = json_body();
  if (below(6) == 0) body.resize(below(body.size()));
  if (below(6) == 0) body.insert(below(body.size() + 1), one_of(kBadUtf8));
  return post(one_of(kServed).first, body);
}

std::string RequestMutator::mangled(std::string request) {
  for (size_t count = 1 + below(8); count > 0; --count) {
    const size_t at = below(request.size() + 1);
    switch (below(4)) {
      case 0:
        if (at < request.size()) request[at] = static_cast<char>(random_());
        break;
      case 1:
        request.erase(at, 1 + below(20));
        break;
      case 2:
        request.insert(at, garbage(8));
        break;
      default:
        request.insert(at, request.substr(0, below(60)));
    }
  }
  return request;
}

}  // namespace nibble
