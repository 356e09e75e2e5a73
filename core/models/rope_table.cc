#include "core/models/rope_table.h"

#include <cmath>
#include <numbers>

namespace nibble {
namespace {

float scaled_frequency(float frequency, const RopeConfig& rope) {
  if (!rope.llama3) return frequency;
  const double wavelength = 2.0 * std::numbers::pi / static_cast<double>(frequency);
  if (wavelength < rope.original_max_position / rope.high_freq_factor) return frequency;
  const auto slow = static_cast<float>(static_cast<double>(frequency) / rope.factor);
  if (wavelength > rope.original_max_position / rope.low_freq_factor) return slow;
  const double t = (rope.original_max_position / wavelength - rope.low_freq_factor) /
                   (rope.high_freq_factor - rope.low_freq_factor);
  return static_cast<float>((1.0 - t) * static_cast<double>(slow) +
                            t * static_cast<double>(frequency));
}

struct OwnedTable {
  std::vector<float> cosine;
  std::vector<float> sine;
  kernels::RopeTable table;
};

}  // namespace

std::shared_ptr<const kernels::RopeTable> make_rope_table(const RopeConfig& rope, int64_t head_dim,
                                                          int64_t num_positions) {
  const int64_t half = head_dim / 2;
  auto owned = std::make_shared<OwnedTable>();
  owned->cosine.resize(static_cast<size_t>(num_positions * half));
  owned->sine.resize(static_cast<size_t>(num_positions * half));
  for (int64_t i = 0; i < half; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(head_dim);
    const auto plain = static_cast<float>(1.0 / std::pow(rope.theta, exponent));
    const float frequency = scaled_frequency(plain, rope);
    for (int64_t p = 0; p < num_positions; ++p) {
      const float angle = static_cast<float>(p) * frequency;
      owned->cosine[static_cast<size_t>(p * half + i)] =
          static_cast<float>(std::cos(static_cast<double>(angle)));
      owned->sine[static_cast<size_t>(p * half + i)] =
          static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  owned->table = {owned->cosine.data(), owned->sine.data(), half, num_positions};
  return {owned, &owned->table};
}

}  // namespace nibble
