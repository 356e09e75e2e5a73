// Against exact rational arithmetic (oracles/quant, calibrated_*).
#include "core/quant/held_scale.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/quant/bf16.h"
#include "core/quant/group_codec.h"

namespace nibble::quant {
namespace {

const std::filesystem::path kFixtures = NIBBLE_SOURCE_DIR "/tests/oracles/quant";

TEST(HeldScale, StartAndUpdateMatchTheFixturesBitForBit) {
  const Json fixture = read_json_file(kFixtures / "calibrated.json");
  for (const Json& info : fixture["cases"]) {
    const SafetensorsFile file(kFixtures / info["file"].get<std::string>());
    const int64_t group = info["group"];
    const auto* weight = file.tensor("weight").as<uint16_t>();
    const auto* scale = file.tensor("weight_scale").as<uint16_t>();
    const auto* code = file.tensor("codes").as<int8_t>();
    const auto* update = file.tensor("update").as<float>();
    const auto* master = file.tensor("master").as<uint16_t>();
    const auto* moved = file.tensor("step.master").as<uint16_t>();
    const auto* moved_code = file.tensor("step.codes").as<int8_t>();
    const auto* projected = file.tensor("step.projected").as<uint8_t>();
    const auto count = static_cast<int64_t>(file.tensor("codes").bytes.size());
    int64_t num_projected = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t s = scale[i / group];
      ASSERT_EQ(calibrated_master(weight[i], code[i], s), master[i]) << info["name"] << " " << i;
      ASSERT_EQ(quantize_held(bf16_to_float(master[i]), bf16_to_float(s)), code[i]);
      const HeldStep step = held_update(master[i], update[i], s);
      ASSERT_EQ(step.master, moved[i]) << info["name"] << " " << i;
      ASSERT_EQ(step.projected, projected[i] != 0) << info["name"] << " " << i;
      ASSERT_EQ(quantize_held(bf16_to_float(step.master), bf16_to_float(s)), moved_code[i]);
      num_projected += step.projected ? 1 : 0;
    }
    EXPECT_EQ(num_projected, info["projected"].get<int64_t>());
  }
}

// Under every scale of the fixtures: the own code keeps the weight, others move it by whole scales.
TEST(HeldScale, ShiftedMastersLieInTheirCellsAsTheWeightsInTheirs) {
  const Json fixture = read_json_file(kFixtures / "calibrated.json");
  int64_t inner = 0, all = 0;
  for (const Json& info : fixture["cases"]) {
    const SafetensorsFile file(kFixtures / info["file"].get<std::string>());
    const int64_t group = info["group"];
    const auto* weight = file.tensor("weight").as<uint16_t>();
    const auto* scale = file.tensor("weight_scale").as<uint16_t>();
    const auto count = static_cast<int64_t>(file.tensor("codes").bytes.size());
    for (int64_t i = 0; i < count; ++i) {
      const double s = bf16_to_float(scale[i / group]);
      const double w = bf16_to_float(weight[i]);
      const int own = quantize_held(bf16_to_float(weight[i]), bf16_to_float(scale[i / group]));
      for (int code = -8; code <= 7; ++code) {
        const uint16_t start = shifted_master(weight[i], code, scale[i / group]);
        const double m = bf16_to_float(start);
        ASSERT_EQ(quantize_held(bf16_to_float(start), bf16_to_float(scale[i / group])), code);
        ASSERT_GE(m, -8.5 * s);
        ASSERT_LE(m, 7.5 * s);
        if (code == own && m != w) {
          ASSERT_GT(std::fabs(w), 7.5 * s);  // clipped: put on the range's bound
        }
        // Well inside its cell a weight stays that far from the middle, to a BF16 rounding.
        const double place = w - own * s;
        if (std::fabs(place) > 0.4 * s || s > 1e37) continue;  // (there a sum may overflow)
        ++inner;
        ASSERT_NEAR(m - code * s, place, 8.5 * s / 256) << info["name"] << " " << i << " " << code;
      }
      all += 16;
    }
  }
  EXPECT_GT(inner, all / 3);
}

TEST(HeldScale, UnusableScalesAreRefused) {
  const SafetensorsFile file(kFixtures / "calibrated_errors.safetensors");
  for (const char* name :
       {"scale_zero", "scale_negative", "scale_nan", "scale_inf", "scale_huge"}) {
    const TensorView scales = file.tensor(std::string(name) + ".weight_scale");
    int invalid = 0;
    for (size_t i = 0; i < scales.bytes.size() / 2; ++i) {
      invalid += held_scale_is_valid(scales.as<uint16_t>()[i]) ? 0 : 1;
    }
    EXPECT_EQ(invalid, 1) << name;
  }
}

}  // namespace
}  // namespace nibble::quant
