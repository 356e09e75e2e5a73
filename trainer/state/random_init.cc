#include "trainer/state/random_init.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/base/fail.h"
#include "core/base/philox.h"

namespace nibble {
namespace {

constexpr uint32_t kInitStream = 0x696e6974;  // "init": a counter of its own among Philox's users
constexpr uint32_t kAdapterStream = 0x6c6f7261;  // "lora"
constexpr int64_t kDrawsPerCall = 4;

// Two standard normals from two random words.
std::array<double, 2> box_muller(uint32_t a, uint32_t b) {
  const double uniform = (static_cast<double>(a) + 0.5) * 0x1.0p-32;  // never 0
  const double radius = std::sqrt(-2.0 * std::log(uniform));
  const double angle = 2.0 * std::numbers::pi * static_cast<double>(b) * 0x1.0p-32;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

// Four random words for each place (row, columns c to c + 3) of a matrix, each element by its place
// alone: draw(words, row's first element at column c, how many of the four there are).
template <typename Draw>
void for_places(const ParameterSpec& spec, uint32_t stream, int64_t parameter, RowShard rows,
                uint64_t seed, const kernels::Parallel& parallel, std::span<float> out, Draw draw) {
  parallel.run(rows.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = out.data() + r * spec.cols;
      for (int64_t c = 0; c < spec.cols; c += kDrawsPerCall) {
        const PhiloxWords counter = {{static_cast<uint32_t>(c / kDrawsPerCall),
                                      static_cast<uint32_t>(rows.begin + r),
                                      static_cast<uint32_t>(parameter), stream}};
        draw(philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)),
             row + c, std::min(kDrawsPerCall, spec.cols - c));
      }
    }
  });
}

void check_rows(const ParameterSpec& spec, RowShard rows, std::span<const float> out) {
  NIBBLE_CHECK(static_cast<int64_t>(out.size()) == rows.rows() * spec.cols,
               "{}: {} elements for {} rows of {}", spec.name(), out.size(), rows.rows(),
               spec.cols);
}

}  // namespace

double initializer_range(const Json& config, const std::string& what) {
  constexpr double kDefault = 0.02;
  const auto found = config.find("initializer_range");
  if (found == config.end() || found->is_null()) return kDefault;
  const double value = found->is_number() ? found->get<double>() : 0.0;
  if (!(value > 0.0) || !std::isfinite(value)) {
    fail(ErrorCode::kInvalidArgument, "{}: initializer_range = {}; want a number above 0", what,
         found->dump());
  }
  return value;
}

void draw_rows(const ParameterSpec& spec, int64_t parameter, RowShard rows, const RandomInit& init,
               const kernels::Parallel& parallel, std::span<float> out) {
  check_rows(spec, rows, out);
  if (spec.is_vector()) {
    std::fill(out.begin(), out.end(), 1.0f);
    return;
  }
  for_places(
      spec, kInitStream, parameter, rows, init.seed, parallel, out,
      [&](const PhiloxWords& words, float* at, int64_t count) {
        const auto first = box_muller(words.word[0], words.word[1]);
        const auto second = box_muller(words.word[2], words.word[3]);
        const std::array<double, kDrawsPerCall> normal = {first[0], first[1], second[0], second[1]};
        for (int64_t i = 0; i < count; ++i) {
          at[i] = static_cast<float>(init.stddev * normal[static_cast<size_t>(i)]);
        }
      });
}

void draw_adapter_rows(const ParameterSpec& spec, int64_t parameter, RowShard rows, uint64_t seed,
                       const kernels::Parallel& parallel, std::span<float> out) {
  check_rows(spec, rows, out);
  if (spec.role == ParameterRole::kLoraB) {
    std::fill(out.begin(), out.end(), 0.0f);
    return;
  }
  const double bound = 1.0 / std::sqrt(static_cast<double>(spec.cols));
  for_places(spec, kAdapterStream, parameter, rows, seed, parallel, out,
             [bound](const PhiloxWords& words, float* at, int64_t count) {
               for (int64_t i = 0; i < count; ++i) {
                 const double unit = (static_cast<double>(words.word[i]) + 0.5) * 0x1.0p-32;
                 at[i] = static_cast<float>((2.0 * unit - 1.0) * bound);
               }
             });
}

}  // namespace nibble
