#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/bench_layout.h"
#include "cli/command.h"
#include "cli/engine_bench.h"
#include "cli/engine_ranks.h"
#include "cli/planned_model.h"
#include "cli/serve_bench.h"
#include "cli/sync_bench.h"
#include "cli/train_bench.h"
#include "core/base/fail.h"
#include "core/base/json.h"

namespace nibble {
namespace {

constexpr int kMaxRounds = 10'000;
constexpr int64_t kMaxBucketKib = int64_t{1} << 20;

struct BenchFlags {
  std::string from;
  std::string to;
  std::filesystem::path model;
  int64_t group_size = 0;
  std::string targets;
  int rounds = 10;
  int64_t bucket_kib = TransferSizes{}.bucket_bytes >> 10;
  int64_t direct_kib = TransferSizes{}.direct_bytes >> 10;
  bool json = false;
};

constexpr const char* kSyncHelp =
    "LAYOUT: dpD, then tpT, then epE as needed. D x T ranks; T of them work on the same tokens "
    "and\n"
    "share attention and dense MLPs, E share a layer's experts. --to may begin with replicas, 2x,\n"
    "and is then one rank each unless more is said: 3x, 2xtp2, 2xep4.\n"
    "Each rank is a process of this machine; the ways are Gloo over loopback, one group a "
    "receiver.\n"
    "Receivers run the real transaction: reserve, move, verify, prepare, commit.\n"
    "gb_per_s is a publication with all hashes, wire_gb_per_s the transport alone, raw_gb_per_s a\n"
    "plain Gloo send of the same bytes by the same processes in the same round; on loopback that\n"
    "is the link's bound, so bound_share is of_raw. pause_ms is the commit. Medians of all "
    "rounds.\n"
    "Example:\n  nibble bench sync --from dp2tp2 --to 2x --model models/Qwen3-0.6B --json";

double rate_gb_per_s(int64_t bytes, double ms) { return static_cast<double>(bytes) / ms / 1e6; }

std::string result_json(const BenchFlags& flags, const SyncBenchResult& result) {
  const double rate = rate_gb_per_s(result.packed_bytes, result.publication_ms);
  const double wire = rate_gb_per_s(result.packed_bytes, result.wire_ms);
  const double raw = rate_gb_per_s(result.packed_bytes, result.raw_ms);
  const OrderedJson json = {{"bench", "sync"},
                            {"from", flags.from},
                            {"to", flags.to},
                            {"receivers", result.num_receivers},
                            {"bytes", result.bytes},
                            {"packed_bytes", result.packed_bytes},
                            {"gb_per_s", rate},
                            {"wire_gb_per_s", wire},
                            {"raw_gb_per_s", raw},
                            {"of_raw", rate / raw},
                            {"wire_of_raw", wire / raw},
                            {"pause_ms", result.pause_ms},
                            {"max_pause_ms", result.max_pause_ms},
                            {"bound_share", rate / raw},
                            {"peak_extra_bytes", result.peak_extra_bytes},
                            {"bucket_kib", flags.bucket_kib},
                            {"direct_kib", flags.direct_kib},
                            {"n", result.num_rounds}};
  return json.dump();
}

void print_result(const BenchFlags& flags, const SyncBenchResult& result) {
  const auto megabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  const auto print_rate = [&](const char* name, double ms) {
    fmt::print("  {:<16}{:9.2f} ms {:7.2f} GB/s {:7.3f} of raw\n", name, ms,
               rate_gb_per_s(result.packed_bytes, ms), result.raw_ms / ms);
  };
  fmt::print("{}: {} -> {}, {} receivers, {} rounds\n", flags.model.string(), flags.from, flags.to,
             result.num_receivers, result.num_rounds);
  fmt::print("  {:<16}{:9.3f} MB\n", "packed", megabytes(result.packed_bytes));
  fmt::print("  {:<16}{:9.3f} MB, {:.4f} x packed\n", "received", megabytes(result.bytes),
             static_cast<double>(result.bytes) / static_cast<double>(result.packed_bytes));
  print_rate("publication", result.publication_ms);
  print_rate("transport alone", result.wire_ms);
  print_rate("raw Gloo send", result.raw_ms);
  fmt::print("  {:<16}{:9.3f} ms, at most {:.3f}\n", "pause", result.pause_ms, result.max_pause_ms);
  fmt::print("  {:<16}{:9.3f} MB beyond both buffers of the busiest receiver\n", "extra memory",
             megabytes(result.peak_extra_bytes));
}

SyncBenchOptions options_of(const BenchFlags& flags) {
  if (flags.rounds < 1 || flags.rounds > kMaxRounds) {
    fail(ErrorCode::kInvalidArgument, "--rounds is {}; it must be from 1 to {}", flags.rounds,
         kMaxRounds);
  }
  if (flags.bucket_kib < 1 || flags.bucket_kib > kMaxBucketKib) {
    fail(ErrorCode::kInvalidArgument, "--bucket-kib is {}; it must be from 1 to {}",
         flags.bucket_kib, kMaxBucketKib);
  }
  if (flags.direct_kib < 1 || flags.direct_kib > kMaxBucketKib) {
    fail(ErrorCode::kInvalidArgument, "--direct-kib is {}; it must be from 1 to {}",
         flags.direct_kib, kMaxBucketKib);
  }
  return {parse_bench_layout("--from", flags.from, false),
          parse_bench_layout("--to", flags.to, true),
          flags.rounds,
          {flags.bucket_kib << 10, flags.direct_kib << 10}};
}

void run_sync(const BenchFlags& flags) {
  const SyncBenchOptions options = options_of(flags);
  const PlannedModel model = plan_model(flags.model, flags.group_size, flags.targets);
  const SyncBenchResult result = run_sync_bench(model, options);
  if (flags.json) {
    fmt::print("{}\n", result_json(flags, result));
  } else {
    print_result(flags, result);
  }
}

void list_benchmarks() {
  fmt::print(
      "decode   tokens a second of the rollout engine, by batch\n"
      "prefill  the same of prompts\n"
      "serve    the HTTP server under a load of many connections with long-tailed answers\n"
      "sync     publishing weights between processes of this machine, from any layout to any "
      "other\n"
      "train    steps of the trainer, with INT4 weights, BF16 weights or both in turn\n"
      "`nibble bench NAME --help` says what is measured.\n");
}

void add_engine_benches(CLI::App& command, CommandContext& context) {
  CLI::App* decode =
      command.add_subcommand("decode", "tokens a second of the rollout engine, by batch");
  auto decode_flags = std::make_shared<EngineBenchFlags>();
  add_engine_bench_flags(*decode, *decode_flags, true);
  decode->footer(
      "weight_gb_per_s counts what a step reads of the weights; share_of_stream is its part of "
      "what\nmemory gives to plain reads in the same run. Steps with prompts are not counted. "
      "swap_ms:\nthe longest of five swaps of weights in the middle of a batch.\n"
      "Example:\n  nibble bench decode --model models/Qwen3-0.6B-int4 --batch 1,8,32 --json");
  decode->callback([decode_flags, &context] {
    context.run = [decode_flags] {
      run_on_ranks(decode_flags->model, [&] { run_decode_bench(*decode_flags); });
    };
  });
  CLI::App* prefill = command.add_subcommand("prefill", "tokens a second of prompts");
  auto prefill_flags = std::make_shared<EngineBenchFlags>();
  prefill_flags->prompt_tokens = 512;
  add_engine_bench_flags(*prefill, *prefill_flags, false);
  prefill->footer(
      "Example:\n  nibble bench prefill --model models/Qwen3-0.6B-int4 --prompt-tokens 512 --json");
  prefill->callback([prefill_flags, &context] {
    context.run = [prefill_flags] {
      run_on_ranks(prefill_flags->model, [&] { run_prefill_bench(*prefill_flags); });
    };
  });
}

void add_serve_bench(CLI::App& command, CommandContext& context) {
  CLI::App* serve = command.add_subcommand("serve", "the HTTP server under a load of many clients");
  auto flags = std::make_shared<ServeBenchFlags>();
  add_serve_bench_flags(*serve, *flags);
  serve->footer(
      "Streaming /v1/completions over real connections, each of which sends its next request when\n"
      "its last one is answered. Lengths are log-normal with the median --new-tokens, cut at\n"
      "--max-new-tokens; the same in every run of one --seed. Before the load a greedy answer is\n"
      "compared with the engine's own (with --url and no --model: with the server's in one "
      "piece);\n"
      "an answer with another number of tokens than was asked for ends the run.\n"
      "ttft_ms: until the first part of an answer. tpot_ms: from there to the last part, by "
      "token.\n"
      "Memory is this process's, server and clients; rss_growth_mib counts from after the "
      "warm-up,\n"
      "rss_growth_late_mib from when half of the answers were there. The KV cache is reserved at\n"
      "the start and enters memory as it is first used.\n"
      "Example:\n  nibble bench serve --model models/Qwen3-0.6B-int4 --concurrency 64 --json");
  serve->callback([flags, &context] {
    context.run = [flags] {
      run_on_ranks(flags->server.engine.model, [&] { run_serve_bench(*flags); });
    };
  });
}

void add_train_bench(CLI::App& command, CommandContext& context) {
  CLI::App* train = command.add_subcommand("train", "steps of the trainer");
  auto flags = std::make_shared<TrainBenchFlags>();
  add_train_bench_flags(*train, *flags);
  train->footer(
      "Random tokens, all of which are learned. step_ms is a whole step: gathers, forward and\n"
      "backward, gradient sums, AdamW with packing. Medians of all rounds after two others. With\n"
      "--qat both the same processes train both, a step each in turn; ratio is the mean of pairs,\n"
      "upper_95 what it is at most. gathered_*_bytes: what rank 0 received in a step.\n"
      "Example:\n  nibble bench train --model models/Qwen3-0.6B --tokens 4096 --qat both --ranks "
      "2");
  train->callback([flags, &context] { context.run = [flags] { run_train_bench(*flags); }; });
}

}  // namespace

void add_bench_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand("bench", "benchmarks; alone: lists them");
  command->require_subcommand(0, 1);
  command->footer(
      "Example:\n  nibble bench sync --from dp2 --to 1x --model models/Qwen3-0.6B\n"
      "`nibble bench sync --help` says what is measured.");
  CLI::App* sync = command->add_subcommand(
      "sync", "time, bytes, pause and memory of a publication between processes of this machine");
  auto flags = std::make_shared<BenchFlags>();  // shared: parse and work are two callbacks
  sync->add_option("--from", flags->from, "LAYOUT of the trainer: dp2, dp2tp2, dp4ep2")->required();
  sync->add_option("--to", flags->to, "LAYOUT of the engines: 1x, 3x, 2xtp2, 2xep2")->required();
  sync->add_option("--model", flags->model,
                   "Hugging Face directory; config.json is enough, weights are random")
      ->required();
  sync->add_option("--group-size", flags->group_size,
                   "32, 64 or 128; default: the checkpoint's, else 32");
  sync->add_option("--targets", flags->targets,
                   "what is quantized: experts, mlp or linear; default: the checkpoint's, else as "
                   "in convert");
  sync->add_option("--rounds", flags->rounds, "timed publications, after two others")
      ->capture_default_str();
  sync->add_option("--bucket-kib", flags->bucket_kib, "of one transfer, at most")
      ->capture_default_str();
  sync->add_option("--direct-kib", flags->direct_kib,
                   "pieces of at least this travel alone, without being packed and unpacked")
      ->capture_default_str();
  sync->add_flag("--json", flags->json, "print one JSON object in a line");
  sync->footer(kSyncHelp);
  sync->callback([flags, &context] { context.run = [flags] { run_sync(*flags); }; });
  add_engine_benches(*command, context);
  add_serve_bench(*command, context);
  add_train_bench(*command, context);
  command->callback([command, &context] {
    if (command->get_subcommands().empty()) context.run = list_benchmarks;
  });
}

}  // namespace nibble
