#pragma once

#include <random>
#include <string>
#include <vector>

namespace nibble {

/// Turns valid requests into what no client should send. The same seed gives the same requests.
class RequestMutator {
 public:
  explicit RequestMutator(uint64_t seed) : random_(seed) {}

  /// The bytes of one connection.
  std::string next();

 private:
  size_t below(size_t count) { return static_cast<size_t>(random_() % count); }
  template <typename List>
  const auto& one_of(const List& list) {
    return list[below(std::size(list))];
  }
  std::string garbage(size_t most);
  std::string json_value();
  std::string json_body();
  std::string valid();
  std::string with_bad_length();
  std::string with_bad_chunks();
  std::string with_doubled_header();
  std::string pipelined();
  std::string with_bad_json();
  std::string mangled(std::string request);

  std::mt19937_64 random_;
};

}  // namespace nibble
