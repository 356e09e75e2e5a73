#include "benchmarks/figure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "core/base/clock.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

const Stopwatch since_start;  // children inherit it

}  // namespace

double median(std::vector<double> values) {
  NIBBLE_CHECK(!values.empty(), "the median of nothing");
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double least(const std::vector<double>& values) {
  NIBBLE_CHECK(!values.empty(), "the least of nothing");
  return *std::min_element(values.begin(), values.end());
}

Figure& Figure::number(const std::string& key, double value) {
  return set(key, std::stod(fmt::format("{:.5g}", value)));
}

Figure& Figure::times(const std::string& key, const std::vector<double>& ms) {
  return number(key + "_ms", median(ms))
      .number(key + "_min_ms", least(ms))
      .set(key + "_n", ms.size());
}

void Figure::print() const {
  // One write, because several processes print.
  const std::string line = text() + "\n";
  fwrite(line.data(), 1, line.size(), stdout);
  fflush(stdout);
}

void progress(const std::string& text) {
  fmt::print(stderr, "[{:6.1f} s] {}\n", since_start.elapsed_ms() / 1e3, text);
}

}  // namespace nibble
