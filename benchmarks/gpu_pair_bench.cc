// Two GPUs of one machine, a process each: publications from one to the other, faults in their
// middle, training that shares a model, and its log-probabilities to the bit. One JSON line a
// figure on stdout, progress on stderr; exit code 1 if anything failed or a rank hung.
//   gpu_pair_bench [--part sync|faults|train|exact]... [--share | --cpu | --plan]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>

#include "benchmarks/child_processes.h"
#include "benchmarks/figure.h"
#include "benchmarks/pair_parts.h"
#include "core/base/error.h"
#include "core/base/fail.h"
#include "core/device/cuda_device.h"

namespace {

using nibble::PairOptions;
using nibble::Place;

// In a child: CUDA must not start in the process that forks.
bool has_gpus(int wanted) {
  const auto count = [wanted] {
    const int there = nibble::ops::num_cuda_devices();
    if (there >= wanted) return;
    nibble::fail(nibble::ErrorCode::kFailedPrecondition,
                 "this machine shows {} GPUs; {} are wanted", there, wanted);
  };
  return nibble::run_processes({{"gpu count", count}}, std::chrono::seconds(60));
}

bool run_parts(const std::vector<std::string>& parts, const PairOptions& options) {
  const std::map<std::string, bool (*)(const PairOptions&)> known = {{"sync", nibble::run_sync},
                                                                     {"faults", nibble::run_faults},
                                                                     {"train", nibble::run_train},
                                                                     {"exact", nibble::run_exact}};
  if (options.place != Place::kCpu && !has_gpus(options.place == Place::kOwnGpu ? 2 : 1)) {
    return false;
  }
  bool good = true;
  for (const std::string& part : parts) {
    const bool is_good = known.at(part)(options);
    nibble::progress(part + (is_good ? ": done" : ": FAILED"));
    good = good && is_good;
  }
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> parts = {"sync", "train", "faults", "exact"};
  PairOptions options;
  bool shares = false, on_cpu = false, plans = false;
  CLI::App app("Weight sync, faults and training on two GPUs");
  app.add_option("--part", parts, "what to run; default: everything")
      ->check(CLI::IsMember({"sync", "faults", "train", "exact"}));
  auto* share = app.add_flag("--share", shares, "all ranks on one GPU, tiny shapes: a dry run");
  app.add_flag("--cpu", on_cpu, "all ranks on the CPU, tiny shapes: a dry run")->excludes(share);
  app.add_flag("--hide-others", options.hides_others, "each rank sees its own GPU only");
  app.add_flag("--plan", plans, "print what would be moved and held, and end");
  app.add_option("--rounds", options.rounds, "repeats of what is timed")->check(CLI::Range(1, 100));
  app.add_option("--dense-layers", options.dense_layers)->check(CLI::Range(1, 36));
  app.add_option("--moe-layers", options.moe_layers)->check(CLI::Range(1, 48));
  CLI11_PARSE(app, argc, argv);
  options.place = on_cpu ? Place::kCpu : shares ? Place::kSharedGpu : Place::kOwnGpu;
  try {
    std::string root = (std::filesystem::temp_directory_path() / "nibble_pair_XXXXXX").string();
    if (mkdtemp(root.data()) == nullptr) {
      nibble::fail(nibble::ErrorCode::kResourceExhausted, "no temporary directory '{}'", root);
    }
    options.directory = root;
    bool good = true;
    if (plans) {
      nibble::describe_plans(options);
    } else {
      good = run_parts(parts, options);
    }
    std::filesystem::remove_all(root);
    return good ? 0 : 1;
  } catch (const nibble::Error& error) {
    nibble::progress(error.what());
    return nibble::exit_code(error.code());
  }
}
