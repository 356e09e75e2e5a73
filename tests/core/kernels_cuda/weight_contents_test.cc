// Hashes of weights, and what differs between two versions of them, on CUDA against the CPU's.
#include "tests/core/kernels_cuda/weight_kernels_fixture.h"

namespace nibble::kernels {
namespace {

TEST_F(WeightKernelsCuda, HashesCountsAndSumsAreTheCpus) {
  std::vector<uint32_t> words(100003);
  std::mt19937 random(1);
  for (uint32_t& word : words) word = random();
  std::vector<uint32_t> other = words;
  for (size_t i = 0; i < other.size(); i += 7) other[i] ^= 0x10f00001u;
  const auto values = random_bf16(70001, 5);
  std::vector<uint16_t> changed = values;
  for (size_t i = 0; i < changed.size(); i += 11) changed[i] ^= 1;
  const auto count = std::ssize(words), num_values = std::ssize(values);
  const auto a = on_device(words), b = on_device(other);
  const auto c = on_device(values), d = on_device(changed);
  const auto hashes = [&](const WeightKernels& kernels, const auto& w, const auto& v) {
    const std::vector<HashJob> jobs = {{w.data(), nullptr, count, 12345678901ull},
                                       {w.data(), nullptr, 0, 3},
                                       {nullptr, v.data(), num_values, 7},
                                       {w.data(), nullptr, count, 12345678902ull},
                                       {w.data() + 1, nullptr, 5, 2}};
    return kernels.hash(jobs);
  };
  const auto hash = hashes(*gpu, a, c);
  EXPECT_EQ(hash, hashes(cpu, words, values));
  EXPECT_EQ(hash[1], quant::ContentHash{});
  EXPECT_EQ(hash[2], quant::hash_bf16(values.data(), num_values, 7));
  EXPECT_NE(hash[0], hash[3]);
  EXPECT_TRUE(gpu->hash({}).empty());
  // Fewer scales than words, and values alone.
  const int64_t some = 5003;
  const std::vector<CompareJob> on_cpu = {
      {{words.data(), other.data()}, count, {values.data(), changed.data()}, num_values},
      {{words.data(), words.data()}, some, {values.data(), changed.data()}, some / 4},
      {{}, 0, {values.data(), changed.data()}, num_values},
      {{}, 0, {}, 0}};
  const std::vector<CompareJob> on_gpu = {
      {{a.data(), b.data()}, count, {c.data(), d.data()}, num_values},
      {{a.data(), a.data()}, some, {c.data(), d.data()}, some / 4},
      {{}, 0, {c.data(), d.data()}, num_values},
      {{}, 0, {}, 0}};
  const auto got = gpu->count_changes(on_gpu), want = cpu.count_changes(on_cpu);
  ASSERT_EQ(got.size(), on_gpu.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].codes, want[i].codes);
    EXPECT_EQ(got[i].values, want[i].values);
    EXPECT_EQ(got[i].bytes, want[i].bytes);
  }
  EXPECT_GT(want[0].codes, 0);
  EXPECT_EQ(want[0].values, (num_values + 10) / 11);
  EXPECT_EQ(want[1].values, (some / 4 + 10) / 11);
  EXPECT_EQ(want[2].values, want[0].values);

  const auto x = random_floats(50001, 3), y = random_floats(17, 4);
  const auto dx = on_device(x), dy = on_device(y);
  const std::vector<std::span<const float>> host = {x, y};
  const std::vector<std::span<const float>> device = {{dx.data(), x.size()}, {dy.data(), y.size()}};
  const double sum = gpu->sum_of_squares(device);
  EXPECT_NEAR(sum, cpu.sum_of_squares(host), 1e-9 * sum);
  EXPECT_EQ(sum, gpu->sum_of_squares(device));

  auto total = random_floats(1001, 8);
  const auto parts = random_floats(3 * 1100, 9);
  const auto d_total = on_device(total), d_parts = on_device(parts);
  gpu->add_parts(d_total.data(), 1001, d_parts.data(), 1100, 3);
  cpu.add_parts(total.data(), 1001, parts.data(), 1100, 3);
  EXPECT_EQ(on_host(d_total), total);
}

TEST_F(WeightKernelsCuda, ListsOfChangedBytesAreTheCpusAndBringTheBaseToTheNext) {
  // Sizes around a block's, an odd number of halves of words, and a start at half a word.
  const std::vector<int64_t> sizes = {2, 4, 65536, 65538, 200006, 196610, 512};
  const std::vector<int64_t> starts = {0, 2, 4, 0, 2, 4, 6};
  std::mt19937 random(9);
  for (const uint32_t one_in : {1u, 3u, 50u, 5000u, ~0u}) {
    std::vector<std::vector<uint8_t>> base, next;
    std::vector<DeviceBuffer<uint8_t>> d_base, d_next, d_target;
    std::vector<ByteChangeJob> on_cpu, on_gpu;
    std::vector<ByteTarget> targets;
    for (size_t i = 0; i < sizes.size(); ++i) {
      base.emplace_back(static_cast<size_t>(sizes[i] + starts[i]) + 8);
      for (uint8_t& byte : base.back()) byte = static_cast<uint8_t>(random());
      next.push_back(base.back());
      for (uint8_t& byte : next.back()) {
        if (random() % one_in == 0) byte ^= static_cast<uint8_t>(1 + random() % 255);
      }
      d_base.push_back(on_device(base.back()));
      d_next.push_back(on_device(next.back()));
      d_target.push_back(on_device(base.back()));
      const auto job = [&](const auto& a, const auto& b) {
        return ByteChangeJob{reinterpret_cast<const std::byte*>(a.data()) + starts[i],
                             reinterpret_cast<const std::byte*>(b.data()) + starts[i], sizes[i]};
      };
      on_cpu.push_back(job(base.back(), next.back()));
      on_gpu.push_back(job(d_base.back(), d_next.back()));
      targets.push_back(
          {reinterpret_cast<std::byte*>(d_target.back().data()) + starts[i], sizes[i]});
    }
    const auto counts = cpu.count_byte_changes(on_cpu);
    ASSERT_EQ(gpu->count_byte_changes(on_gpu), counts);
    int64_t entries = 0;
    for (const uint32_t count : counts) entries += count;
    std::vector<uint8_t> list(static_cast<size_t>(kChangeEntryBytes * entries) + 1);
    cpu.list_byte_changes(on_cpu, counts, reinterpret_cast<std::byte*>(list.data()));
    auto d_list = poisoned<uint8_t>(std::ssize(list));
    gpu->list_byte_changes(on_gpu, counts, reinterpret_cast<std::byte*>(d_list.data()));
    list.back() = 0xff;  // nothing is written behind the list
    EXPECT_TRUE(on_host(d_list) == list) << one_in;

    const auto* const d_entries = reinterpret_cast<const std::byte*>(d_list.data());
    EXPECT_TRUE(gpu->apply_byte_changes(targets, counts, d_entries));
    for (size_t i = 0; i < sizes.size(); ++i) {
      // The bytes of the slice are the next version's, those around it are untouched.
      std::vector<uint8_t> want = base[i];
      std::copy_n(next[i].begin() + starts[i], sizes[i], want.begin() + starts[i]);
      EXPECT_TRUE(on_host(d_target[i]) == want) << sizes[i] << " bytes, one in " << one_in;
    }
  }
  // A place outside its block.
  const auto bytes = on_device(std::vector<uint8_t>(64));
  const auto entry = on_device(std::vector<uint8_t>{64, 0, 1});
  const ByteTarget target{reinterpret_cast<std::byte*>(bytes.data()), 64};
  EXPECT_FALSE(gpu->apply_byte_changes(std::span(&target, 1), std::vector<uint32_t>{1},
                                       reinterpret_cast<const std::byte*>(entry.data())));
}

}  // namespace
}  // namespace nibble::kernels
