#include "cli/train_bench.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <boost/math/distributions/students_t.hpp>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "cli/forked_ranks.h"
#include "cli/median.h"
#include "cli/model_flags.h"
#include "cli/planned_model.h"
#include "cli/process_memory.h"
#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/base/memory_count.h"
#include "core/comm/process_group.h"
#include "core/comm/reduce.h"
#include "core/device/cuda_device.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/tensor_memory.h"
#include "trainer/token_records.h"
#include "trainer/trainer.h"

namespace nibble {
namespace {

constexpr int kWarmUp = 2;  // first steps allocate
constexpr int64_t kMostTokens = int64_t{1} << 24;
constexpr int kMostRanks = 64;
constexpr int kMostRounds = 10'000;
constexpr auto kLongestRun = std::chrono::hours(4);

// One trainer of a rank, and what its steps took.
struct Side {
  const char* name;
  bool is_quantized;
  std::unique_ptr<Trainer> trainer = nullptr;
  std::vector<double> step_ms = {}, forward_backward_ms = {}, optimizer_ms = {}, pack_ms = {};
  SupervisedMetrics last = {};
  std::optional<double> first_loss = {};  // of the weights that all sides begin with
};

bool has_weights(const std::filesystem::path& model) {
  const std::filesystem::directory_iterator files(model);
  return std::any_of(begin(files), end(files),
                     [](const auto& file) { return file.path().extension() == ".safetensors"; });
}

// The value of a configuration's enum.
template <typename Enum>
Enum named(const char* flag, const std::string& name) {
  std::string all;
  for (const auto& [value, its_name] : enum_names(Enum{})) {
    if (its_name == name) return value;
    all += (all.empty() ? "" : ", ") + std::string(its_name);
  }
  fail(ErrorCode::kInvalidArgument, "{} is '{}'; it must be one of {}", flag, name, all);
}

TrainerConfig trainer_config(const TrainBenchFlags& flags, const PlannedModel& model,
                             bool is_quantized) {
  TrainerConfig config;
  config.model = flags.model;
  config.init = has_weights(flags.model) ? ModelInit::kPretrained : ModelInit::kRandom;
  config.train_plan = is_quantized ? model.quantization : plan_bf16(model.table);
  config.serve_plan = config.train_plan;
  config.algorithm.reference = ReferenceMode::kNever;
  config.algorithm.kl_metric_every = 0;
  config.algorithm.loss.objective = PolicyObjective::kSft;
  config.algorithm.loss.aggregation = Aggregation::kTokenMean;
  config.optimizer.lr = 1e-5;
  config.optimizer.state = named<MomentType>("--state", flags.state);
  config.recompute = named<Recompute>("--recompute", flags.recompute);
  config.max_tokens_per_device = flags.max_tokens_per_device;
  config.max_positions = flags.sequence + 1;
  return config;
}

std::vector<TokenRecord> random_records(const TrainBenchFlags& flags, int64_t vocab) {
  std::mt19937 random(1);
  std::vector<TokenRecord> records;
  for (int64_t left = flags.tokens; left > 0; left -= flags.sequence) {
    TokenRecord& record = records.emplace_back();
    const auto draw = [&] { return static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)); };
    record.prompt = {draw()};
    for (int64_t i = 0; i < std::min(left, flags.sequence); ++i) record.response.push_back(draw());
  }
  return records;
}

// What one rank does.
class RankBench {
 public:
  RankBench(const TrainBenchFlags& flags, const PlannedModel& model, const Mesh& mesh, int rank,
            int port)
      : flags_(flags),
        mesh_(mesh),
        port_(port),
        gpu_(mesh.world == 1 ? open_gpu(flags.device, Numerics::kFast) : nullptr) {
    const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    ops::set_num_threads(std::max(1, cores / mesh.world));
    if (gpu_) ops::bind_cuda_thread();
    count_tensor_memory();
    group_ = mesh.world == 1 ? solo_group("trainers")
                             : join_gloo_group(meeting("trainers"), rank, mesh.world);
    groups_ = std::make_unique<MeshGroups>(mesh, *group_,
                                           [this](const std::string& name, int place, int size) {
                                             return join_part(name, place, size);
                                           });
    for (Side& side : sides_) {
      if (flags.qat != "both" && side.is_quantized != (flags.qat == "on")) continue;
      side.trainer =
          std::make_unique<Trainer>(trainer_config(flags, model, side.is_quantized), *group_,
                                    *groups_, gpu_ ? *gpu_ : ops::cpu_backend());
    }
    records_ = random_records(flags, model.config.vocab);
    std::vector<const TokenRecord*> batch;
    for (const TokenRecord& record : records_) batch.push_back(&record);
    share_ = share_records(batch, mesh.data_rank(rank), mesh.num_data());
  }

  std::string run() {
    const int rounds = flags_.rounds > 0 ? flags_.rounds : flags_.qat == "both" ? 30 : 5;
    for (int round = -kWarmUp; round < rounds; ++round) {
      // Who goes first alternates, so that what a step leaves in caches favours nobody.
      for (const size_t i : round % 2 == 0 ? std::array{0, 1} : std::array{1, 0}) {
        if (sides_[i].trainer) step(sides_[i], round >= 0);
      }
    }
    check();
    OrderedJson json = {{"bench", "train"},
                        {"model", flags_.model.filename().string()},
                        {"device", gpu_ ? "cuda" : "cpu"},
                        {"ranks", mesh_.world},
                        {"tensor", mesh_.tensor},
                        {"expert", mesh_.expert},
                        {"context", mesh_.context},
                        {"tokens", flags_.tokens},
                        {"sequence", flags_.sequence},
                        {"rounds", rounds}};
    // Of the largest rank.
    json["recompute"] = flags_.recompute;
    json["state"] = flags_.state;
    json["peak_bytes"] = all_reduce_max(
        *group_, gpu_ ? ops::peak_cuda_bytes() : memory_count(DeviceKind::kCpu).peak_bytes());
    json["peak_rss_bytes"] = all_reduce_max(*group_, peak_resident_bytes());
    for (const Side& side : sides_) {
      if (side.trainer) json[side.is_quantized ? "qat" : "bf16"] = figures(side);
    }
    if (flags_.qat == "both") json["qat_to_bf16"] = ratio();
    if (group_->world() > 1) {  // the store's host leaves last
      std::vector<std::byte> last(static_cast<size_t>(mesh_.world));
      group_->all_gather(std::span(last).first(1), last)->wait();
    }
    return json.dump();
  }

 private:
  Rendezvous meeting(const std::string& name) const {
    return {"127.0.0.1", port_, name, std::chrono::minutes(5)};
  }
  std::unique_ptr<ProcessGroup> join_part(const std::string& name, int place, int size) const {
    if (size == 1) return solo_group(name);
    return join_gloo_group(meeting(name), place, size);
  }

  void step(Side& side, bool counts) {
    (void)all_reduce_max(*group_, 0);  // begin together
    const Stopwatch clock;
    side.last = side.trainer->train_records(share_);
    if (!side.first_loss) side.first_loss = side.last.tokens.loss;
    if (!counts) return;
    side.step_ms.push_back(clock.elapsed_ms());
    side.forward_backward_ms.push_back(side.last.forward_backward_ms);
    side.optimizer_ms.push_back(side.last.optimizer_ms);
    side.pack_ms.push_back(side.last.pack_ms);
  }

  void check() const {
    constexpr double kMostApart = 0.05;
    for (const Side& side : sides_) {
      if (side.trainer && !std::isfinite(side.last.tokens.loss)) {
        fail(ErrorCode::kInternal, "the loss of {} is {}", side.name, side.last.tokens.loss);
      }
    }
    if (flags_.qat != "both") return;
    const double apart = *sides_[0].first_loss / *sides_[1].first_loss - 1.0;
    if (std::fabs(apart) > kMostApart) {
      fail(ErrorCode::kInternal,
           "first losses with INT4 and BF16 weights are {:.1f} % apart: {} and {}", 100.0 * apart,
           *sides_[0].first_loss, *sides_[1].first_loss);
    }
  }

  OrderedJson figures(const Side& side) const {
    const double ms = median(side.step_ms);
    return {{"tokens_per_s", static_cast<double>(flags_.tokens) / ms * 1000.0},
            {"step_ms", ms},
            {"forward_backward_ms", median(side.forward_backward_ms)},
            {"optimizer_ms", median(side.optimizer_ms)},
            {"pack_ms", median(side.pack_ms)},
            {"gathered_quantized_bytes", side.last.gathered.quantized},
            {"gathered_plain_bytes", side.last.gathered.plain},
            {"loss", side.last.tokens.loss}};
  }

  // Of the times of steps in pairs: the mean of their logarithms, and what it is at most with 95 %
  // of confidence (one-sided, Student's t).
  OrderedJson ratio() const {
    const auto count = static_cast<double>(sides_[0].step_ms.size());
    double sum = 0.0, squares = 0.0;
    for (size_t i = 0; i < sides_[0].step_ms.size(); ++i) {
      const double log_ratio = std::log(sides_[0].step_ms[i] / sides_[1].step_ms[i]);
      sum += log_ratio;
      squares += log_ratio * log_ratio;
    }
    const double mean = sum / count;
    const double variance =
        std::max(0.0, squares / count - mean * mean) * count / std::max(1.0, count - 1.0);
    const boost::math::students_t students(std::max(1.0, count - 1.0));
    const double one_sided_95 = boost::math::quantile(students, 0.95);
    OrderedJson json = {{"pairs", sides_[0].step_ms.size()},
                        {"ratio", std::exp(mean)},
                        {"upper_95", std::exp(mean + one_sided_95 * std::sqrt(variance / count))}};
    // Of the tensors that are quantized, what BF16 moves to what INT4 moves.
    const GatherBytes &int4 = sides_[0].last.gathered, &bf16 = sides_[1].last.gathered;
    if (int4.quantized > 0) {
      json["gathered_bf16_to_int4"] =
          static_cast<double>(bf16.plain - int4.plain) / static_cast<double>(int4.quantized);
    }
    return json;
  }

  const TrainBenchFlags& flags_;
  const Mesh mesh_;
  const int port_;
  const std::unique_ptr<const ops::Backend> gpu_;
  std::unique_ptr<ProcessGroup> group_;
  std::unique_ptr<MeshGroups> groups_;
  std::array<Side, 2> sides_ = {Side{"qat", true}, Side{"bf16", false}};
  std::vector<TokenRecord> records_;
  std::vector<const TokenRecord*> share_;
};

Mesh check_flags(const TrainBenchFlags& flags, const PlannedModel& model) {
  const auto within = [](const char* flag, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return;
    fail(ErrorCode::kInvalidArgument, "{} is {}; it must be from {} to {}", flag, value, low, high);
  };
  within("--ranks", flags.ranks, 1, kMostRanks);
  within("--tokens", flags.tokens, 1, kMostTokens);
  within("--sequence", flags.sequence, 1, flags.tokens);
  within("--max-tokens", flags.max_tokens_per_device, 1, kMostTokens);
  within("--rounds", flags.rounds, 0, kMostRounds);
  if (flags.qat != "on" && flags.qat != "off" && flags.qat != "both") {
    fail(ErrorCode::kInvalidArgument, "--qat is '{}'; it must be on, off or both", flags.qat);
  }
  if (flags.device == "cuda" && flags.ranks > 1) {
    fail(ErrorCode::kUnimplemented,
         "--device cuda measures one rank, not --ranks {}; several GPUs: "
         "scripts/gpu_report_multi.sh",
         flags.ranks);
  }
  (void)named<Recompute>("--recompute", flags.recompute);
  (void)named<MomentType>("--state", flags.state);
  const Mesh mesh{flags.ranks, flags.tensor, flags.expert, flags.context};
  if (const auto problem = mesh_problem(model.config, mesh)) {
    fail(ErrorCode::kInvalidArgument, "--ranks, --tensor, --expert, --context: {}", *problem);
  }
  if ((flags.tokens + flags.sequence - 1) / flags.sequence < mesh.num_data()) {
    fail(ErrorCode::kInvalidArgument,
         "--tokens {} are {} sequences of --sequence {}, too few for {} ranks: lower --sequence",
         flags.tokens, (flags.tokens + flags.sequence - 1) / flags.sequence, flags.sequence,
         mesh.num_data());
  }
  return mesh;
}

void print_text(const OrderedJson& json) {
  fmt::print("{}: {} tokens a step in sequences of {}, {} ranks\n",
             json["model"].get<std::string>(), json["tokens"].get<int64_t>(),
             json["sequence"].get<int64_t>(), json["ranks"].get<int64_t>());
  for (const char* side : {"qat", "bf16"}) {
    if (!json.contains(side)) continue;
    const OrderedJson& it = json[side];
    const auto number = [&](const char* name) { return it[name].get<double>(); };
    fmt::print(
        "  {:<5} {:8.0f} tokens/s {:9.1f} ms: forward-backward {:.1f}, optimizer {:.1f}, "
        "packing {:.1f}; gathered {:.2f} MB INT4, {:.2f} MB BF16\n",
        side, number("tokens_per_s"), number("step_ms"), number("forward_backward_ms"),
        number("optimizer_ms"), number("pack_ms"), number("gathered_quantized_bytes") / 1e6,
        number("gathered_plain_bytes") / 1e6);
  }
  if (json.contains("qat_to_bf16")) {
    const OrderedJson& it = json["qat_to_bf16"];
    fmt::print(
        "  qat takes {:.4f} of the time of bf16, at most {:.4f} with 95 % of confidence, {} "
        "pairs\n",
        it["ratio"].get<double>(), it["upper_95"].get<double>(), it["pairs"].get<int64_t>());
  }
  fmt::print("  peak memory {:.1f} MB allocated by the largest rank, {:.1f} MB resident\n",
             static_cast<double>(json["peak_bytes"].get<int64_t>()) / 1e6,
             static_cast<double>(json["peak_rss_bytes"].get<int64_t>()) / 1e6);
}

}  // namespace

void add_train_bench_flags(CLI::App& command, TrainBenchFlags& flags) {
  command
      .add_option("--model", flags.model,
                  "Hugging Face directory; config.json alone: random weights")
      ->required();
  command.add_option("--tokens", flags.tokens, "of a step, all ranks (4096)");
  command.add_option("--sequence", flags.sequence, "tokens of a sequence (512)");
  command.add_option("--qat", flags.qat, "on, off, or both in turn (on)");
  command.add_option("--group-size", flags.group_size, "of the quantizer");
  command.add_option("--targets", flags.targets, "what is quantized: experts, mlp or linear");
  command.add_option("--ranks", flags.ranks, "processes of this machine (1)");
  command.add_option("--tensor", flags.tensor, "ranks that work on the same tokens (1)");
  command.add_option("--expert", flags.expert, "ranks that hold a layer's experts together (1)");
  command.add_option("--context", flags.context, "ranks that share the tokens of a sequence (1)");
  command.add_option("--max-tokens", flags.max_tokens_per_device, "of a micro-batch (4096)");
  command.add_option("--recompute", flags.recompute, "none, selective or full (none)");
  command.add_option("--state", flags.state, "type of the moments: fp32 or bf16 (fp32)");
  command.add_option("--rounds", flags.rounds, "steps that count (5; both: 30 pairs)");
  command.add_option("--device", flags.device, "auto, cpu or cuda, which measures one rank (auto)");
  command.add_flag("--json", flags.json, "one line of JSON");
}

void run_train_bench(const TrainBenchFlags& flags) {
  const PlannedModel model = plan_model(flags.model, flags.group_size, flags.targets);
  const Mesh mesh = check_flags(flags, model);
  std::vector<ForkedRank> ranks;
  ranks.reserve(static_cast<size_t>(mesh.world));
  for (int rank = 0; rank < mesh.world; ++rank) {
    ranks.push_back({fmt::format("trainer {}", rank), [&, rank](int port) {
                       return RankBench(flags, model, mesh, rank, port).run();
                     }});
  }
  const std::string line = run_forked(ranks, Deadline::after(kLongestRun))[0];
  if (flags.json) {
    fmt::print("{}\n", line);
  } else {
    print_text(parse_ordered_json(line, "result"));
  }
}

}  // namespace nibble
