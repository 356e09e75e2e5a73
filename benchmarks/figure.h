#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/json.h"

namespace nibble {

double median(std::vector<double> values);
double least(const std::vector<double>& values);

/// One measurement, printed as a line of JSON on stdout.
class Figure {
 public:
  explicit Figure(std::string_view bench) { json_["bench"] = bench; }
  template <typename T>
  Figure& set(const std::string& key, T&& value) {
    json_[key] = std::forward<T>(value);
    return *this;
  }
  /// Rounded to five digits.
  Figure& number(const std::string& key, double value);
  /// `key`_ms, the median, `key`_min_ms and `key`_n.
  Figure& times(const std::string& key, const std::vector<double>& ms);
  std::string text() const { return json_.dump(); }
  void print() const;

 private:
  OrderedJson json_;
};

/// A line on stderr, with the seconds since the program started.
void progress(const std::string& text);

}  // namespace nibble
