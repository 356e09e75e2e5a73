// What deltas of a model's packed weights cost on one GPU: to find and list what changed, to apply
// it, and how many bytes travel. One JSON line a share of changed bytes.
//   gpu_delta_bench [--model qwen3-4b] [--group 128]
#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "benchmarks/figure.h"
#include "benchmarks/model_shapes.h"
#include "benchmarks/small_changes.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/fail.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "weight_sync/delta.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

constexpr int kRounds = 5;

struct DeltaBench {
  DeltaBench(const std::string& model_name, int64_t group_size)
      : model(model_name),
        group(group_size),
        spec(make_model_spec(shape_of(model))),
        plan(usual_plan(spec, group)),
        manifest(make_manifest(spec.table, plan)),
        base(random_weights(spec, plan, DeviceKind::kCuda)),
        next(spec.table, plan, DeviceKind::kCuda),
        target(spec.table, plan, DeviceKind::kCuda) {}
  static std::vector<std::span<const std::byte>> pieces(const Manifest& manifest,
                                                        const ResidentWeights& weights) {
    std::vector<std::span<const std::byte>> out;
    for (const LocalTensor& tensor : replica_tensors(manifest, weights)) {
      out.push_back(tensor.bytes);
    }
    return out;
  }

  const std::string model;
  const int64_t group;
  const ModelSpec spec;
  const QuantizationPlan plan;
  const Manifest manifest;
  const std::shared_ptr<ResidentWeights> base;
  ResidentWeights next, target;
  const std::unique_ptr<kernels::WeightKernels> kernels = ops::make_cuda_weight_kernels();
};

// A copy of the model within the GPU, ms: the physical limit of the passes.
double copy_ms(DeltaBench& bench) {
  std::vector<double> ms;
  for (int round = 0; round <= kRounds; ++round) {
    const Stopwatch watch;
    copy_weights(*bench.base, bench.target);
    if (round > 0) ms.push_back(watch.elapsed_ms());
  }
  return median(ms);
}

// What a trainer reports of every step: codes, values and bytes that changed, ms.
double count_ms(const DeltaBench& bench) {
  std::vector<kernels::CompareJob> jobs;
  for (int64_t p = 0; p < bench.spec.table.size(); ++p) {
    const StoredParameter &a = bench.base->stored(p), &b = bench.next.stored(p);
    const auto& values = [](const StoredParameter& stored) -> const Array<uint16_t>& {
      return stored.words.empty() ? stored.bf16 : stored.scale;
    };
    jobs.push_back({{a.words.data(), b.words.data()},
                    std::ssize(a.words),
                    {values(a).data(), values(b).data()},
                    std::ssize(values(a))});
  }
  std::vector<double> ms;
  for (int round = 0; round <= kRounds; ++round) {
    const Stopwatch watch;
    (void)bench.kernels->count_changes(jobs);
    if (round > 0) ms.push_back(watch.elapsed_ms());
  }
  return median(ms);
}

void measure(DeltaBench& bench, int64_t stride, double whole_copy_ms) {
  copy_weights(*bench.base, bench.next);
  change_every(*bench.kernels, bench.next, stride, 1);
  const auto base = DeltaBench::pieces(bench.manifest, *bench.base);
  const auto next = DeltaBench::pieces(bench.manifest, bench.next);
  std::vector<std::span<std::byte>> target;
  for (const auto piece : DeltaBench::pieces(bench.manifest, bench.target)) {
    target.emplace_back(const_cast<std::byte*>(piece.data()), piece.size());
  }
  DeviceMemory& memory = device_memory(DeviceKind::kCuda);
  std::vector<double> encode_ms, apply_ms;
  int64_t sent = 0, most_memory = 0;
  for (int round = 0; round <= kRounds; ++round) {
    randomize(bench.spec, bench.target);
    memory.finish();
    double encoding = 0.0, applying = 0.0;
    sent = 0;
    for (const PieceRange& range : delta_ranges(piece_sizes(ConstPieces(next)), kGpuTransfers)) {
      const size_t count = range.end - range.begin;
      Stopwatch watch;
      const EncodedDelta delta =
          encode_delta(*bench.kernels, ConstPieces(base).subspan(range.begin, count),
                       ConstPieces(next).subspan(range.begin, count));
      encoding += watch.restart_ms();
      DeltaDecoder decoder(*bench.kernels, delta.header,
                           Pieces(target).subspan(range.begin, count));
      const auto to = decoder.payload();
      sent += std::ssize(delta.header);
      for (size_t i = 0; i < to.size(); ++i) {  // the wire's work
        memory.copy(to[i].data(), delta.payload[i].data(), std::ssize(to[i]));
        sent += std::ssize(to[i]);
      }
      memory.finish();
      most_memory = std::max(most_memory, delta.lists.num_bytes());
      watch.restart_ms();
      decoder.apply(ConstPieces(base).subspan(range.begin, count));
      applying += watch.restart_ms();
    }
    if (round == 0) continue;
    encode_ms.push_back(encoding);
    apply_ms.push_back(applying);
  }
  if (content_hashes(bench.manifest, bench.target, *bench.kernels) !=
      content_hashes(bench.manifest, bench.next, *bench.kernels)) {
    fail(ErrorCode::kDataLoss, "the delta made other bytes than the next version's");
  }
  const auto bytes = static_cast<double>(bench.manifest.bytes);
  Figure("delta")
      .set("model", bench.model)
      .set("group", bench.group)
      .set("bytes", bench.manifest.bytes)
      .number("changed_share", 1.0 / static_cast<double>(stride))
      .number("sent_share", static_cast<double>(sent) / bytes)
      .number("count_ms", count_ms(bench))
      .times("encode", encode_ms)
      .times("apply", apply_ms)
      .number("copy_ms", whole_copy_ms)
      .number("copy_GB_per_s", 2e-6 * bytes / whole_copy_ms)
      .number("encode_of_copy", whole_copy_ms / median(encode_ms))
      .number("apply_of_copy", whole_copy_ms / median(apply_ms))
      // Links slower than this gain by a delta: what is not sent takes longer than both passes.
      .number("pays_below_GB_per_s",
              (bytes - static_cast<double>(sent)) / (median(encode_ms) + median(apply_ms)) / 1e6)
      .number("list_mib", static_cast<double>(most_memory) / (1 << 20))
      .print();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  std::string model = "qwen3-4b";
  int64_t group = 128;
  CLI::App app("Deltas of packed weights on one GPU");
  app.add_option("--model", model)->check(CLI::IsMember({"qwen3-0.6b", "qwen3-4b", "30b-a3b"}));
  app.add_option("--group", group)->check(CLI::IsMember({32, 64, 128}));
  CLI11_PARSE(app, argc, argv);
  try {
    nibble::ops::use_cuda_device(0);
    nibble::DeltaBench bench(model, group);
    const double copy_ms = nibble::copy_ms(bench);
    for (const int64_t stride : {1'000'000, 333, 60, 2}) {
      nibble::measure(bench, stride, copy_ms);
    }
  } catch (const nibble::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
