// Part `train`: supervised steps of one rank, and of two that share the model in each way.
#include <algorithm>
#include <cmath>
#include <map>
#include <thread>

#include "benchmarks/child_processes.h"
#include "benchmarks/figure.h"
#include "benchmarks/model_shapes.h"
#include "benchmarks/pair_mesh.h"
#include "benchmarks/pair_parts.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/comm/reduce.h"
#include "core/device/cuda_device.h"
#include "core/ops/torch_parallel.h"
#include "tests/core/comm/free_port.h"
#include "trainer/memory_plan.h"
#include "trainer/token_records.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int kMaxThreads = 32;  // masters are drawn on the CPU
// Of the loss at equal weights: how tokens are cut into micro-batches decides how BF16 products
// are rounded.
constexpr double kLossTolerance = 2e-3;
// Of the GPU's memory, for two trainers at a time.
constexpr double kMemoryShare = 0.8;

struct TrainCase {
  std::string model;
  int64_t layers = 0;
  int64_t records = 16, prompt = 256, response = 768;
  int64_t max_tokens = 4096;  // of a micro-batch
  int rounds = 5;
};

struct Weights {
  const char* name;
  int64_t group;
};
constexpr Weights kWeights[] = {{"int4", 128}, {"bf16", 0}};

/// The steps of one trainer.
struct Run {
  Weights weights;
  std::unique_ptr<Trainer> trainer;
  double init_ms = 0.0;
  std::vector<double> losses;
  std::vector<double> step_ms, forward_backward_ms, optimizer_ms, pack_ms;  // but for the first
  std::vector<double> optimizer_alone_ms;
  GatherBytes gathered;  // of a step, by this rank
  int64_t computed_tokens = 0;
};

class LayoutBench {
 public:
  LayoutBench(const TrainCase& it, Member& member, const std::filesystem::path& directory,
              const Mesh& mesh, int rank)
      : it_(it),
        member_(member),
        directory_(directory),
        mesh_(mesh),
        rank_(rank),
        seat_(member, mesh, rank, it.model + ", " + mesh_name(mesh)) {
    const int64_t vocab = shape_of(it.model).vocab;
    for (int64_t r = 0; r < it.records; ++r) {
      const auto seed = static_cast<uint32_t>(2 * r);
      batch_.push_back(
          {random_ids(vocab, it.prompt, seed), random_ids(vocab, it.response, seed + 1)});
    }
    // As small as a batch can be: the step is the optimizer's.
    for (int64_t r = 0; r < mesh.num_data(); ++r) {
      tiny_.push_back({random_ids(vocab, 1, 1), random_ids(vocab, 1, 2)});
    }
  }

  std::vector<Run> measure() {
    is_interleaved_ = two_fit();
    std::vector<Run> runs;
    for (const Weights& weights : kWeights) runs.push_back({weights, nullptr});
    if (is_interleaved_) {
      for (Run& run : runs) start(run);
      for (int i = 0; i <= it_.rounds; ++i) {
        for (Run& run : runs) step(run);
      }
      for (Run& run : runs) finish(run);
    } else {
      for (Run& run : runs) {
        start(run);
        for (int i = 0; i <= it_.rounds; ++i) step(run);
        finish(run);
      }
    }
    return runs;
  }
  bool is_interleaved() const { return is_interleaved_; }

 private:
  TrainerConfig config(const Weights& weights) const {
    TrainerConfig config = random_trainer(directory_, weights.group);
    config.max_tokens_per_device = it_.max_tokens;
    config.max_positions = it_.prompt + it_.response;
    return config;
  }
  bool two_fit() const {
    if (member_.device() == DeviceKind::kCpu) return true;
    // They compute in turn, so that activations are held once.
    int64_t wanted = 0;
    int64_t activations = 0;
    for (const Weights& weights : kWeights) {
      const TrainerMemory memory =
          plan_trainer_memory(config(weights), mesh_, rank_, DeviceKind::kCuda);
      const int64_t own = memory.activation_bytes + memory.margin_bytes;
      wanted += memory.total() - own;
      activations = std::max(activations, own);
    }
    wanted += activations;
    const double there = kMemoryShare * static_cast<double>(ops::free_cuda_bytes());
    return all_reduce_max(*seat_.host, static_cast<double>(wanted) > there ? 1 : 0) == 0;
  }
  void start(Run& run) {
    const Stopwatch watch;
    run.trainer = std::make_unique<Trainer>(config(run.weights), *seat_.host, *seat_.groups,
                                            member_.backend(Numerics::kFast));
    run.init_ms = watch.elapsed_ms();
  }
  std::vector<const TokenRecord*> share(const std::vector<TokenRecord>& batch) const {
    std::vector<const TokenRecord*> all;
    all.reserve(batch.size());
    for (const TokenRecord& record : batch) all.push_back(&record);
    return share_records(all, mesh_.data_rank(rank_), mesh_.num_data());
  }
  void step(Run& run) {
    const auto mine = share(batch_);
    start_together(*seat_.host);
    const Stopwatch watch;
    const SupervisedMetrics metrics = run.trainer->train_records(mine);
    const double ms = watch.elapsed_ms();
    run.losses.push_back(metrics.tokens.loss);
    if (run.losses.size() == 1) return;
    run.step_ms.push_back(ms);
    run.forward_backward_ms.push_back(metrics.forward_backward_ms);
    run.optimizer_ms.push_back(metrics.optimizer_ms);
    run.pack_ms.push_back(metrics.pack_ms);
    run.gathered = metrics.gathered;
    run.computed_tokens = metrics.tokens.computed_tokens;
  }
  void finish(Run& run) {
    const auto mine = share(tiny_);
    for (int i = 0; i < 3; ++i) {
      run.optimizer_alone_ms.push_back(run.trainer->train_records(mine).optimizer_ms);
    }
    run.trainer.reset();
    if (!is_interleaved_) release_cached_memory(member_.device());
  }

  const TrainCase& it_;
  Member& member_;
  const std::filesystem::path directory_;
  const Mesh mesh_;
  const int rank_;
  const MeshSeat seat_;
  std::vector<TokenRecord> batch_, tiny_;
  bool is_interleaved_ = false;
};

int64_t num_parameters(const TrainCase& it) {
  int64_t count = 0;
  for (const ParameterSpec& p : model_parameters(shape_of(it.model, it.layers)).parameters) {
    count += p.num_elements();
  }
  return count;
}

/// The losses of one rank, by the weights' name.
using OneRank = std::map<std::string, std::vector<double>>;

double relative_difference(double value, double want) { return std::fabs(value - want) / want; }

void print_run(const TrainCase& it, const Mesh& mesh, const LayoutBench& bench, const Run& run,
               const OneRank& one_rank, double peak_bytes) {
  const std::vector<double>& want = one_rank.at(run.weights.name);
  const double first = relative_difference(run.losses.front(), want.front());
  const double step_ms = median(run.step_ms);
  const double optimizer_ms = median(run.optimizer_alone_ms);
  const auto tokens = static_cast<double>(run.computed_tokens);
  Figure("train")
      .set("model", it.model)
      .set("layers", it.layers)
      .set("parameters", num_parameters(it))
      .set("mesh", mesh_name(mesh))
      .set("weights", run.weights.name)
      .set("interleaved", bench.is_interleaved())
      .set("tokens", run.computed_tokens)
      .set("micro_batch_tokens", it.max_tokens)
      .set("loss_first", run.losses.front())
      .number("loss_first_off_one_rank", first)
      .set("loss_last", run.losses.back())
      .number("loss_last_off_one_rank", relative_difference(run.losses.back(), want.back()))
      .times("step", run.step_ms)
      .number("tokens_per_s", 1e3 * tokens / step_ms)
      // The trainer's clock stops when the last backward pass is enqueued; the optimizer's waits
      // for it. A step of next to no tokens has the optimizer alone.
      .number("optimizer_alone_ms", optimizer_ms)
      .number("step_less_optimizer_ms", step_ms - optimizer_ms - median(run.pack_ms))
      .times("forward_backward_clock", run.forward_backward_ms)
      .times("optimizer_clock", run.optimizer_ms)
      .times("pack", run.pack_ms)
      .set("gathered_quantized_bytes", run.gathered.quantized)
      .set("gathered_plain_bytes", run.gathered.plain)
      .number("init_ms", run.init_ms)
      .number("peak_gib", peak_bytes / static_cast<double>(int64_t{1} << 30))
      .print();
  if (!std::isfinite(first) || first > kLossTolerance) {
    fail(ErrorCode::kInternal, "{}, {}, {}: the first loss is {}, of one rank {}", it.model,
         mesh_name(mesh), run.weights.name, run.losses.front(), want.front());
  }
}

void print_ratio(const TrainCase& it, const Mesh& mesh, bool is_interleaved, const Run& int4,
                 const Run& bf16) {
  std::vector<double> ratios;  // of neighbours in time, where they are
  for (size_t i = 0; i < int4.step_ms.size(); ++i) {
    ratios.push_back(int4.step_ms[i] / bf16.step_ms[i]);
  }
  const auto bytes = [](const Run& run) {
    return static_cast<double>(run.gathered.quantized + run.gathered.plain);
  };
  Figure figure("train_int4_of_bf16");
  figure.set("model", it.model)
      .set("mesh", mesh_name(mesh))
      .set("interleaved", is_interleaved)
      .number("step_ratio", median(ratios))
      .number("step_ratio_min", least(ratios));
  if (bytes(int4) > 0) figure.number("gathered_ratio", bytes(int4) / bytes(bf16));
  figure.print();
}

void run_rank(const TrainCase& it, const PairOptions& options,
              const std::filesystem::path& directory, int port, int rank) {
  Member member(options.seat(port, rank));
  const auto both = member.join_host("train", rank, 2);
  std::vector<Mesh> meshes = {Mesh{1}};
  for (const Mesh& mesh : meshes_of_two(shape_of(it.model, it.layers))) {
    if (mesh.tensor == 1 || mesh.expert == 1) meshes.push_back(mesh);
  }
  const int cores =
      std::min<int>(kMaxThreads, static_cast<int>(std::thread::hardware_concurrency()));
  OneRank one_rank;
  for (const Mesh& mesh : meshes) {
    ops::set_num_threads(std::max(1, cores / mesh.world));
    if (rank < mesh.world) {
      if (rank == 0) progress(fmt::format("train {}: {}", it.model, mesh_name(mesh)));
      LayoutBench bench(it, member, directory, mesh, rank);
      const std::vector<Run> runs = bench.measure();
      if (mesh.world == 1) {
        for (const Run& run : runs) one_rank[run.weights.name] = run.losses;
      }
      const auto peak = static_cast<double>(peak_device_bytes(member.device()));
      if (rank == 0) {
        for (const Run& run : runs) print_run(it, mesh, bench, run, one_rank, peak);
        print_ratio(it, mesh, bench.is_interleaved(), runs[0], runs[1]);
      }
    }
    release_cached_memory(member.device());
    start_together(*both);
  }
}

std::vector<TrainCase> cases_of(const PairOptions& options) {
  if (options.is_dry_run()) {
    return {{"tiny-dense", 3, 4, 8, 24, 64, options.rounds},
            {"tiny-moe", 2, 4, 8, 24, 64, options.rounds}};
  }
  TrainCase dense{"qwen3-4b", options.dense_layers};
  TrainCase moe{"30b-a3b", options.moe_layers};
  dense.rounds = moe.rounds = options.rounds;
  return {dense, moe};
}

}  // namespace

bool run_train(const PairOptions& options) {
  bool good = true;
  for (const TrainCase& it : cases_of(options)) {
    const auto directory = options.directory / ("train-" + it.model);
    write_model_directory(directory, it.model, it.layers);
    const int port = free_port();
    const auto body = [&](int rank) { run_rank(it, options, directory, port, rank); };
    good = run_two_ranks(fmt::format("train {}", it.model), body, 240s) && good;
  }
  return good;
}

}  // namespace nibble
