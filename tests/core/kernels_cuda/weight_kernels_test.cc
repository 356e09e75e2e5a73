// CUDA packing and AdamW against the CPU's, to the bit.
#include "core/kernels_cuda/dequantize.h"
#include "tests/core/kernels_cuda/weight_kernels_fixture.h"

namespace nibble::kernels {
namespace {

// One tensor on both sides.
struct Packing {
  explicit Packing(quant::GroupShape s, uint32_t seed) : shape(s), master(make(s, seed)) {}
  static std::vector<float> make(const quant::GroupShape& s, uint32_t seed) {
    auto values = random_floats(s.rows * s.cols, seed, 0.05f);
    for (size_t i = 0; i < values.size(); i += 5) {
      values[i] = std::ldexp(values[i], -static_cast<int>(i % 140));
    }
    for (int64_t i = 0; i < s.group; ++i) values[static_cast<size_t>(i)] = -0.0f;
    return values;
  }
  void allocate() {
    const size_t count = master.size();
    const bool packed = shape.group > 0;
    words.assign(packed ? count / 8 : 1, 0);
    scale.assign(packed ? count / static_cast<size_t>(shape.group) : 1, 0);
    bf16.assign(packed ? 1 : count, 0);
    d_master = on_device(master);
    d_words = poisoned<uint32_t>(std::ssize(words));
    d_scale = poisoned<uint16_t>(std::ssize(scale));
    d_bf16 = poisoned<uint16_t>(std::ssize(bf16));
  }
  PackJob host_job() {
    return shape.group > 0 ? PackJob{master.data(), shape, words.data(), scale.data(), nullptr}
                           : PackJob{master.data(), shape, nullptr, nullptr, bf16.data()};
  }
  PackJob device_job() const {
    return shape.group > 0
               ? PackJob{d_master.data(), shape, d_words.data(), d_scale.data(), nullptr}
               : PackJob{d_master.data(), shape, nullptr, nullptr, d_bf16.data()};
  }
  quant::GroupShape shape;
  std::vector<float> master;
  std::vector<uint32_t> words;
  std::vector<uint16_t> scale, bf16;
  DeviceBuffer<float> d_master{1};
  DeviceBuffer<uint32_t> d_words{1};
  DeviceBuffer<uint16_t> d_scale{1}, d_bf16{1};
};

struct Lists {
  std::vector<PackJob> host, device;
};
Lists lists_of(std::vector<Packing>& tensors) {
  Lists lists;
  for (Packing& tensor : tensors) {
    tensor.allocate();
    lists.host.push_back(tensor.host_job());
    lists.device.push_back(tensor.device_job());
  }
  return lists;
}

TEST_F(WeightKernelsCuda, PackAListIntoTheCpusBytes) {
  for (const int64_t group : {32, 64, 128}) {
    std::vector<Packing> tensors;
    uint32_t seed = 1;
    for (const auto& [rows, cols, g] : std::vector<std::array<int64_t, 3>>{{1, group, group},
                                                                           {3, 3 * group, group},
                                                                           {1, 17, 0},
                                                                           {70001, group, group},
                                                                           {513, 12 * group, group},
                                                                           {300, 111, 0}}) {
      tensors.emplace_back(quant::GroupShape{rows, cols, g}, ++seed);
    }
    const Lists lists = lists_of(tensors);
    ASSERT_FALSE(cpu.pack(lists.host));
    ASSERT_FALSE(gpu->pack(lists.device));
    for (const Packing& tensor : tensors) {
      if (tensor.shape.group == 0) {
        EXPECT_EQ(on_host(tensor.d_bf16), tensor.bf16);
        continue;
      }
      EXPECT_EQ(on_host(tensor.d_words), tensor.words);
      EXPECT_EQ(on_host(tensor.d_scale), tensor.scale);
      const WeightView view{WeightFormat::kInt4, tensor.d_words.data(), tensor.d_scale.data(),
                            tensor.shape.rows,   tensor.shape.cols,     tensor.shape.group};
      const auto panel = poisoned<uint16_t>(std::ssize(tensor.master));
      cuda::dequantize(std::span(&view, 1), panel.data(), nullptr);
      std::vector<int8_t> code(tensor.master.size());
      quant::unpack_rows(tensor.words.data(), tensor.shape.rows, tensor.shape.cols, 4, code.data());
      std::vector<uint16_t> want(tensor.master.size());
      quant::dequantize_rows(code.data(), tensor.scale.data(), tensor.shape, want.data());
      EXPECT_EQ(on_host(panel), want);
    }
  }
}

TEST_F(WeightKernelsCuda, NameTheFirstWeightThatCannotBePacked) {
  for (const bool is_overflow : {false, true}) {
    std::vector<Packing> tensors;
    for (uint32_t seed = 1; seed < 4; ++seed) {
      tensors.emplace_back(quant::GroupShape{40, 1024, 32}, seed);
    }
    tensors.emplace_back(quant::GroupShape{7, 9, 0}, 9);
    tensors[3].master[12] = NAN;
    tensors[2].master[0] = INFINITY;
    tensors[1].master[37 * 1024 + 40] = INFINITY;
    tensors[1].master[5 * 1024 + 100] = is_overflow ? 3.39e38f : NAN;
    const Lists lists = lists_of(tensors);
    const auto want = cpu.pack(lists.host);
    const auto got = gpu->pack(lists.device);
    ASSERT_TRUE(want && got);
    EXPECT_EQ(got->job, 1u);
    EXPECT_EQ(got->row, 5);
    EXPECT_EQ(got->group, 3);
    EXPECT_EQ(got->kind, want->kind);
    EXPECT_EQ(want->row, 5);
    tensors[1].master[37 * 1024 + 40] = tensors[1].master[5 * 1024 + 100] = 0.0f;
    tensors[2].master[0] = 0.0f;
    const Lists second = lists_of(tensors);
    const auto last = gpu->pack(second.device);
    ASSERT_TRUE(last);
    EXPECT_EQ(last->job, 3u);
    EXPECT_EQ(last->row * 9 + last->group, 12);
  }
}

TEST_F(WeightKernelsCuda, AdamwGivesTheCpusBits) {
  std::vector<std::vector<float>> host[4];
  std::vector<DeviceBuffer<float>> device[4];
  std::vector<AdamwJob> host_jobs, device_jobs;
  for (const int64_t count : {1, 1000, 100001}) {
    for (int k = 0; k < 4; ++k) {
      host[k].push_back(random_floats(count, static_cast<uint32_t>(k) + 1, 0.1f));
      if (k == 2) {
        for (float& v : host[k].back()) v = std::fabs(v);
      }
    }
  }
  for (int k = 0; k < 4; ++k) {
    for (const auto& values : host[k]) device[k].push_back(on_device(values));
  }
  for (size_t i = 0; i < 3; ++i) {
    const float decay = i == 0 ? 0.0f : 0.1f;
    const auto count = std::ssize(host[0][i]);
    host_jobs.push_back(
        {host[0][i].data(), host[1][i].data(), host[2][i].data(), host[3][i].data(), count, decay});
    device_jobs.push_back({device[0][i].data(), device[1][i].data(), device[2][i].data(),
                           device[3][i].data(), count, decay});
  }
  for (int64_t step = 1; step <= 3; ++step) {
    const AdamwParams params{3e-4f, 0.9f, 0.98f, 1e-8f, 0.0f, step, 0.7f};
    cpu.adamw(host_jobs, params);
    gpu->adamw(device_jobs, params);
  }
  for (int k = 0; k < 3; ++k) {
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(on_host(device[k][i]), host[k][i]) << k << " " << i;
  }
}

TEST_F(WeightKernelsCuda, MomentsInBf16AreRoundedToTheCpusBits) {
  std::vector<Packing> tensors;
  std::vector<std::vector<uint16_t>> m, v;
  std::vector<std::vector<float>> grad;
  std::vector<DeviceBuffer<uint16_t>> d_m, d_v;
  std::vector<DeviceBuffer<float>> d_grad;
  uint32_t seed = 40;
  const auto bits = [&](int64_t count) {
    std::vector<uint16_t> out;
    for (const float x : random_floats(count, ++seed, 0.1f)) {
      out.push_back(quant::float_to_bf16(std::fabs(x)));
    }
    return out;
  };
  for (const auto& [rows, cols, g] :
       std::vector<std::array<int64_t, 3>>{{513, 384, 32}, {1, 17, 0}, {3, 192, 64}}) {
    tensors.emplace_back(quant::GroupShape{rows, cols, g}, ++seed);
    m.push_back(bits(rows * cols));
    v.push_back(bits(rows * cols));
    grad.push_back(random_floats(rows * cols, ++seed, 0.1f));
    d_m.push_back(on_device(m.back()));
    d_v.push_back(on_device(v.back()));
    d_grad.push_back(on_device(grad.back()));
  }
  Lists lists = lists_of(tensors);
  std::vector<AdamwJob> host, device;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto tensor = static_cast<uint32_t>(i);
    const uint64_t first = 64 * i;
    host.push_back({tensors[i].master.data(),
                    nullptr,
                    nullptr,
                    grad[i].data(),
                    std::ssize(m[i]),
                    0.1f,
                    {m[i].data(), v[i].data(), first, 9, tensor}});
    device.push_back({tensors[i].d_master.data(),
                      nullptr,
                      nullptr,
                      d_grad[i].data(),
                      std::ssize(m[i]),
                      0.1f,
                      {d_m[i].data(), d_v[i].data(), first, 9, tensor}});
  }
  for (int64_t step = 1; step <= 4; ++step) {
    const AdamwParams params{3e-4f, 0.9f, 0.98f, 1e-8f, 0.0f, step, 0.7f};
    if (step % 2 == 0) {
      cpu.adamw(host, params);
      gpu->adamw(device, params);
    } else {
      EXPECT_FALSE(cpu.adamw_pack(host, lists.host, params).problem);
      EXPECT_FALSE(gpu->adamw_pack(device, lists.device, params).problem);
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(on_host(tensors[i].d_master), tensors[i].master);
    EXPECT_EQ(on_host(d_m[i]), m[i]);
    EXPECT_EQ(on_host(d_v[i]), v[i]);
  }
}

// The same under held scales beside a BF16 tensor: what projection moves, and how much that is.
TEST_F(WeightKernelsCuda, UpdateAndPackUnderHeldScalesGiveTheCpusBits) {
  for (const bool spoil : {false, true}) {
    std::vector<Packing> tensors;
    uint32_t seed = 5;
    for (const auto& [rows, cols, g] : std::vector<std::array<int64_t, 3>>{
             {513, 384, 32}, {1, 17, 0}, {70001, 128, 128}, {3, 192, 64}}) {
      tensors.emplace_back(quant::GroupShape{rows, cols, g}, ++seed);
    }
    Lists lists = lists_of(tensors);
    std::vector<std::vector<float>> m, v, grad;
    std::vector<std::vector<uint16_t>> held;
    std::vector<DeviceBuffer<float>> d_m, d_v, d_grad;
    std::vector<DeviceBuffer<uint16_t>> d_held;
    for (Packing& tensor : tensors) {
      const int64_t count = std::ssize(tensor.master);
      m.push_back(random_floats(count, ++seed, 0.1f));
      v.push_back(random_floats(count, ++seed, 0.1f));
      for (float& x : v.back()) x = std::fabs(x);
      grad.push_back(random_floats(count, ++seed, 0.1f));
      // Too small for some masters, so that these are projected.
      held.emplace_back(tensor.scale.size());
      for (size_t i = 0; i < held.back().size(); ++i) {
        held.back()[i] = quant::float_to_bf16(0.001f * static_cast<float>(1 + i % 13));
      }
    }
    if (spoil) grad[2][128 * 5 + 7] = NAN;
    std::vector<AdamwJob> host, device;
    for (size_t i = 0; i < tensors.size(); ++i) {
      d_m.push_back(on_device(m[i]));
      d_v.push_back(on_device(v[i]));
      d_grad.push_back(on_device(grad[i]));
      d_held.push_back(on_device(held[i]));
      const int64_t count = std::ssize(m[i]);
      host.push_back(
          {tensors[i].master.data(), m[i].data(), v[i].data(), grad[i].data(), count, 0.1f});
      device.push_back({tensors[i].d_master.data(), d_m[i].data(), d_v[i].data(), d_grad[i].data(),
                        count, 0.1f});
      if (tensors[i].shape.group == 0) continue;
      lists.host[i].held = held[i].data();
      lists.device[i].held = d_held[i].data();
    }
    const AdamwParams params{3e-4f, 0.9f, 0.98f, 1e-8f, 0.0f, 2, 0.7f};
    const UpdateResult want = cpu.adamw_pack(host, lists.host, params);
    const UpdateResult got = gpu->adamw_pack(device, lists.device, params);
    ASSERT_EQ(want.problem.has_value(), spoil);
    ASSERT_EQ(got.problem.has_value(), spoil);
    if (spoil) {
      EXPECT_EQ(std::tie(got.problem->job, got.problem->row, got.problem->group),
                std::tie(want.problem->job, want.problem->row, want.problem->group));
      continue;
    }
    EXPECT_GT(want.projected, 1000);
    EXPECT_EQ(got.projected, want.projected);
    for (const Packing& tensor : tensors) {
      EXPECT_EQ(on_host(tensor.d_master), tensor.master);
      if (tensor.shape.group == 0) continue;
      EXPECT_EQ(on_host(tensor.d_words), tensor.words);
      EXPECT_EQ(on_host(tensor.d_scale), tensor.scale);
    }
    // Once projected, they are packed as they are.
    ASSERT_FALSE(gpu->pack(lists.device));
    for (const Packing& tensor : tensors) {
      if (tensor.shape.group == 0) continue;
      EXPECT_EQ(on_host(tensor.d_words), tensor.words);
    }
  }
}

// AdamW and packing in one pass, INT4 and BF16, against the CPU's two passes.
TEST_F(WeightKernelsCuda, UpdateAndPackGiveTheCpusBits) {
  for (const bool spoil : {false, true}) {
    std::vector<Packing> tensors;
    uint32_t seed = 3;
    for (const auto& [rows, cols, g] : std::vector<std::array<int64_t, 3>>{
             {513, 384, 32}, {1, 17, 0}, {70001, 128, 128}, {300, 111, 0}, {3, 192, 64}}) {
      tensors.emplace_back(quant::GroupShape{rows, cols, g}, ++seed);
    }
    std::vector<std::vector<float>> m, v, grad;
    std::vector<DeviceBuffer<float>> d_m, d_v, d_grad;
    const Lists lists = lists_of(tensors);
    std::vector<AdamwJob> host, device;
    for (Packing& tensor : tensors) {
      const int64_t count = std::ssize(tensor.master);
      m.push_back(random_floats(count, ++seed, 0.1f));
      v.push_back(random_floats(count, ++seed, 0.1f));
      for (float& x : v.back()) x = std::fabs(x);
      grad.push_back(random_floats(count, ++seed, 0.1f));
    }
    if (spoil) grad[2][128 * 5 + 7] = NAN;
    for (size_t i = 0; i < tensors.size(); ++i) {
      d_m.push_back(on_device(m[i]));
      d_v.push_back(on_device(v[i]));
      d_grad.push_back(on_device(grad[i]));
      const int64_t count = std::ssize(m[i]);
      const float decay = i % 2 == 0 ? 0.1f : 0.0f;
      host.push_back(
          {tensors[i].master.data(), m[i].data(), v[i].data(), grad[i].data(), count, decay});
      device.push_back({tensors[i].d_master.data(), d_m[i].data(), d_v[i].data(), d_grad[i].data(),
                        count, decay});
    }
    const AdamwParams params{3e-4f, 0.9f, 0.98f, 1e-8f, 0.0f, 2, 0.7f};
    cpu.adamw(host, params);
    const auto want = cpu.pack(lists.host);
    const auto got = gpu->adamw_pack(device, lists.device, params).problem;
    ASSERT_EQ(got.has_value(), spoil);
    ASSERT_EQ(want.has_value(), spoil);
    if (spoil) {
      EXPECT_EQ(std::tie(got->job, got->row, got->group),
                std::tie(want->job, want->row, want->group));
      EXPECT_EQ(got->row, 5);
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (spoil && i >= 2) break;  // NaNs do not compare, and the CPU stops packing there
      EXPECT_EQ(on_host(tensors[i].d_master), tensors[i].master);
      EXPECT_EQ(on_host(d_m[i]), m[i]);
      EXPECT_EQ(on_host(d_v[i]), v[i]);
      if (tensors[i].shape.group == 0) {
        EXPECT_EQ(on_host(tensors[i].d_bf16), tensors[i].bf16);
      } else {
        EXPECT_EQ(on_host(tensors[i].d_words), tensors[i].words);
        EXPECT_EQ(on_host(tensors[i].d_scale), tensors[i].scale);
      }
    }
    if (spoil) {
      // Everything is updated, packed or not.
      EXPECT_EQ(on_host(tensors[4].d_master), tensors[4].master);
    }
  }
}

}  // namespace
}  // namespace nibble::kernels
