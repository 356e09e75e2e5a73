// Whole matrices through the kernels against exact rational arithmetic (oracles/quant,
// calibrated_*), and through every instruction set.
#include "core/kernels/held_pack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/json.h"
#include "core/checkpoint/safetensors.h"
#include "core/kernels/isa.h"
#include "core/kernels/weight_kernels.h"
#include "core/quant/bf16.h"
#include "core/quant/pack.h"
#include "tests/core/kernels/random_data.h"
#include "tests/core/kernels/thread_parallel.h"

namespace nibble::kernels {
namespace {

const std::filesystem::path kFixtures = NIBBLE_SOURCE_DIR "/tests/oracles/quant";

template <typename T>
std::vector<T> values(const SafetensorsFile& file, const std::string& name) {
  const TensorView view = file.tensor(name);
  return {view.as<T>(), view.as<T>() + view.bytes.size() / sizeof(T)};
}

std::vector<uint16_t> dequantized(const std::vector<uint32_t>& words,
                                  const std::vector<uint16_t>& scale,
                                  const quant::GroupShape& shape) {
  std::vector<int8_t> code(static_cast<size_t>(shape.rows * shape.cols));
  quant::unpack_rows(words.data(), shape.rows, shape.cols, 4, code.data());
  std::vector<uint16_t> weight(code.size());
  quant::dequantize_rows(code.data(), scale.data(), shape, weight.data());
  return weight;
}

TEST(HeldPack, StartAndUpdateOfWholeMatricesMatchTheFixturesBitForBit) {
  for (const Json& info : read_json_file(kFixtures / "calibrated.json")["cases"]) {
    const SafetensorsFile file(kFixtures / info["file"].get<std::string>());
    const quant::GroupShape shape{info["shape"][0], info["shape"][1], info["group"]};
    const auto scale = values<uint16_t>(file, "weight_scale");
    const auto start = values<uint16_t>(file, "master");
    const auto update = values<float>(file, "update");
    const auto moved = values<uint16_t>(file, "step.master");
    std::vector<float> master(start.size());
    std::vector<uint32_t> words(start.size() / 8);
    const ThreadParallel threads(2);

    for (size_t i = 0; i < start.size(); ++i) master[i] = quant::bf16_to_float(start[i]);
    const HeldMatrix matrix{master.data(), shape, scale.data(), words.data(), master.data()};
    const HeldPacking first = pack_held_int4(matrix, threads);
    EXPECT_FALSE(first.problem);
    EXPECT_EQ(first.projected, 0);
    EXPECT_EQ(words, values<uint32_t>(file, "weight_packed"));
    EXPECT_EQ(dequantized(words, scale, shape), values<uint16_t>(file, "dequant"));

    for (size_t i = 0; i < start.size(); ++i) master[i] += update[i];
    const std::vector<float> plain = master;
    const HeldPacking second = pack_held_int4(matrix, threads);
    EXPECT_FALSE(second.problem);
    EXPECT_EQ(second.projected, info["projected"].get<int64_t>());
    EXPECT_EQ(dequantized(words, scale, shape), values<uint16_t>(file, "step.dequant"));
    const auto projected = values<uint8_t>(file, "step.projected");
    for (size_t i = 0; i < start.size(); ++i) {
      // A float32 master keeps what BF16 would round away, unless it was projected.
      ASSERT_EQ(quant::float_to_bf16(master[i]), moved[i]) << info["name"] << " " << i;
      ASSERT_EQ(master[i], projected[i] != 0 ? quant::bf16_to_float(moved[i]) : plain[i]);
    }
  }
}

TEST(HeldPack, EveryInstructionSetGivesTheScalarFunctionsBits) {
  constexpr int64_t kGroup = 64, kGroups = 301;
  auto master = random_floats(kGroup * kGroups, 41, 0.05f);
  for (size_t i = 0; i < master.size(); i += 11) {
    master[i] = std::ldexp(master[i], static_cast<int>(i % 260) - 130);
  }
  master[77] = std::numeric_limits<float>::infinity();
  master[78] = -master[77];
  master[79] = -0.0f;
  std::vector<quant::HeldRange> ranges;
  for (int64_t g = 0; g < kGroups; ++g) {
    ranges.push_back(quant::held_range(static_cast<uint16_t>(1 + g * 0x7def / kGroups)));
  }
  std::vector<float> want = master;
  std::vector<uint32_t> want_words(master.size() / 8, 0);
  int64_t want_projected = 0;
  for (size_t i = 0; i < master.size(); ++i) {
    const quant::HeldRange& range = ranges[i / kGroup];
    const quant::HeldValue held = quant::hold(master[i], range);
    want_projected += held.projected ? 1 : 0;
    if (held.projected) want[i] = held.value;
    want_words[i / 8] |=
        quant::int4_bits(quant::quantize_held(held.value, range.scale), static_cast<int>(i % 8));
  }
  EXPECT_GT(want_projected, 1000);
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!isa_is_available(isa)) continue;
    std::vector<uint32_t> words(want_words.size());
    const auto run = [&](std::vector<float>& from, float* projected) {
      return isa_table(isa).hold_groups(
          {from.data(), ranges.data(), kGroup, kGroups, words.data(), projected});
    };
    std::vector<float> untouched = master;
    EXPECT_EQ(run(untouched, nullptr).projected, want_projected) << isa_name(isa);
    EXPECT_EQ(untouched, master);
    std::vector<float> got = master;
    const HeldGroupsResult result = run(got, got.data());
    EXPECT_EQ(result.projected, want_projected) << isa_name(isa);
    EXPECT_EQ(result.first_bad, -1);
    EXPECT_EQ(words, want_words) << isa_name(isa);
    EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0);
    got[5 * kGroup + 3] = got[200 * kGroup] = NAN;
    EXPECT_EQ(run(got, got.data()).first_bad, 5) << isa_name(isa);
  }
}

// The fixtures' bad update: the element's row and group are named, and it is not made a code.
TEST(HeldPack, ANaNUpdateIsRefusedByRowAndGroup) {
  const SafetensorsFile file(kFixtures / "calibrated_errors.safetensors");
  for (const Json& info : read_json_file(kFixtures / "calibrated.json")["errors"]) {
    if (info["at"] != "update") continue;
    const std::string name = info["name"];
    const quant::GroupShape shape{info["shape"][0], info["shape"][1], info["group"]};
    const auto weight = values<uint16_t>(file, name + ".weight");
    const auto code = values<int8_t>(file, name + ".codes");
    const auto scale = values<uint16_t>(file, name + ".weight_scale");
    const auto update = values<float>(file, name + ".update");
    std::vector<float> master(weight.size());
    for (size_t i = 0; i < master.size(); ++i) {
      master[i] = quant::bf16_to_float(quant::calibrated_master(
                      weight[i], code[i], scale[i / static_cast<size_t>(shape.group)])) +
                  update[i];
    }
    std::vector<uint32_t> words(master.size() / 8);
    const HeldPacking packing =
        pack_held_int4({master.data(), shape, scale.data(), words.data(), master.data()}, Serial());
    ASSERT_TRUE(packing.problem) << name;
    EXPECT_EQ(packing.problem->row, info["row"].get<int64_t>());
    EXPECT_EQ(packing.problem->group, info["column"].get<int64_t>() / shape.group);
  }
}

TEST(HeldPack, AnUpdateAndItsPackingProjectMastersAndPackingAloneDoesNot) {
  const quant::GroupShape shape{5, 96, 32};
  std::vector<float> master = random_floats(shape.rows * shape.cols, 43, 0.05f);
  const std::vector<float> before = master;
  std::vector<float> m(master.size()), v(master.size()), grad(master.size());
  const std::vector<uint16_t> held(15, quant::float_to_bf16(0.002f));
  std::vector<uint32_t> words(master.size() / 8), updated(words.size());
  std::vector<uint16_t> scale(held.size());
  const Serial serial;
  const CpuWeightKernels kernels(serial);
  PackJob pack{master.data(), shape, words.data(), scale.data(), nullptr, held.data()};
  ASSERT_FALSE(kernels.pack(std::span(&pack, 1)));
  EXPECT_EQ(master, before);
  EXPECT_EQ(scale, held);
  // Without a gradient the update is the projection alone.
  pack.words = updated.data();
  const AdamwJob update{master.data(), m.data(), v.data(), grad.data(), std::ssize(master), 0.0f};
  const UpdateResult result = kernels.adamw_pack(std::span(&update, 1), std::span(&pack, 1), {});
  EXPECT_FALSE(result.problem);
  EXPECT_GT(result.projected, 100);
  EXPECT_EQ(updated, words);
  const HeldPacking again =
      pack_held_int4({master.data(), shape, held.data(), words.data(), nullptr}, serial);
  EXPECT_EQ(again.projected, 0) << "what was projected is inside";
}

}  // namespace
}  // namespace nibble::kernels
