#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/memory_report.h"
#include "cli/planned_model.h"
#include "core/base/fail.h"
#include "core/base/json.h"
#include "core/spec/mesh.h"
#include "weight_sync/cluster_spec.h"
#include "weight_sync/fanout.h"

namespace nibble {
namespace {

struct PlanFlags {
  std::filesystem::path cluster;
  std::filesystem::path model;
  int64_t group_size = 0;
  std::string targets;
  bool all = false;
  MemoryReportFlags job;  // its json is of both plans
};

void check_flags(const PlanFlags& flags) {
  if (!flags.job.config.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--sync takes a cluster file and --model; leave '{}' out (a job's file is not read)",
         flags.job.config.string());
  }
  if (flags.model.empty()) {
    fail(ErrorCode::kInvalidArgument,
         "--sync needs --model: a directory with the model's config.json");
  }
}

std::vector<FanoutPlan> fanout_plans(const ClusterSpec& cluster, const PlannedModel& model,
                                     const PlanFlags& flags) {
  if (const auto problem = mesh_problem(model.config, cluster.mesh)) {
    fail(ErrorCode::kInvalidArgument, "{}: trainer: {}", flags.cluster.string(), *problem);
  }
  const FanoutShares shares =
      fanout_shares(model.manifest, model.table, cluster.mesh, cluster.replica_gpus);
  std::vector<FanoutPlan> plans;
  plans.reserve(kFanoutStrategies.size());
  for (const FanoutStrategy strategy : kFanoutStrategies) {
    plans.push_back(plan_fanout(cluster, shares, strategy));
  }
  return plans;
}

// The first of those that take as long: it is the simpler one.
const FanoutPlan& fastest(const std::vector<FanoutPlan>& plans) {
  return *std::min_element(plans.begin(), plans.end(),
                           [](const FanoutPlan& a, const FanoutPlan& b) {
                             return a.expected_s * (1.0 + 1e-6) < b.expected_s;
                           });
}

OrderedJson plan_json(const FanoutPlan& plan, const ClusterSpec& cluster) {
  OrderedJson edges = OrderedJson::array();
  for (const FanoutEdge& edge : plan.edges) {
    edges.push_back({{"from", edge.from},
                     {"to", edge.to},
                     {"link", link_class_name(edge.link)},
                     {"bytes", edge.bytes}});
  }
  OrderedJson links = OrderedJson::array();
  for (const LinkLoad& link : plan.links) {
    links.push_back({{"link", link_name(link, cluster.links.nic_of)},
                     {"bytes", link.bytes},
                     {"gb_per_s", link.bytes_per_s / 1e9},
                     {"ms", link.seconds() * 1e3}});
  }
  return {{"strategy", fanout_name(plan.strategy)},
          {"chains", plan.num_chains},
          {"longest_chain", plan.longest_chain},
          {"bound_ms", plan.bound_s * 1e3},
          {"expected_ms", plan.expected_s * 1e3},
          {"links", links},
          {"edges", edges}};
}

std::string plans_json(const std::vector<FanoutPlan>& plans, const ClusterSpec& cluster,
                       const PlannedModel& model) {
  OrderedJson strategies = OrderedJson::array();
  for (const FanoutPlan& plan : plans) strategies.push_back(plan_json(plan, cluster));
  OrderedJson gpus = OrderedJson::array();
  for (const ClusterGpu& gpu : cluster.gpus) {
    OrderedJson json = {{"node", gpu.node}};
    if (gpu.trainer_rank >= 0) json["trainer_rank"] = gpu.trainer_rank;
    if (gpu.rollout_place >= 0) {
      json["replica"] = gpu.rollout_place / cluster.replica_gpus;
      json["shard"] = gpu.rollout_place % cluster.replica_gpus;
    }
    gpus.push_back(json);
  }
  const StoredFormat& format = model.manifest.format;
  const OrderedJson root = {{"model_bytes", model.manifest.bytes},
                            {"bits", format.bits},
                            {"group_size", format.group_size},
                            {"trainers", cluster.trainers.size()},
                            {"replicas", cluster.num_replicas()},
                            {"replica_gpus", cluster.replica_gpus},
                            {"chunk_bytes", cluster.chunk_bytes},
                            {"fastest", fanout_name(fastest(plans).strategy)},
                            {"gpus", gpus},
                            {"strategies", strategies}};
  return root.dump();
}

double gigabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

// Links of one kind and direction in one line: the most and the sum.
void print_links(const FanoutPlan& plan, const ClusterSpec& cluster) {
  fmt::print("  {:<12} {:>6} {:>12} {:>12} {:>8} {:>10}  {}\n", "links", "used", "sum GB",
             "most GB", "GB/s", "most ms", "where");
  for (const LinkClass kind : {LinkClass::kNvlink, LinkClass::kNic}) {
    for (const bool is_out : {true, false}) {
      const LinkLoad* most = nullptr;
      int64_t used = 0, sum = 0;
      for (const LinkLoad& link : plan.links) {
        if (link.link != kind || link.is_out != is_out) continue;
        ++used;
        sum += link.bytes;
        if (most == nullptr || link.bytes > most->bytes) most = &link;
      }
      if (most == nullptr) continue;
      fmt::print("  {:<12} {:>6} {:>12.3f} {:>12.3f} {:>8.1f} {:>10.2f}  {}\n",
                 fmt::format("{} {}", link_class_name(kind), is_out ? "out" : "in"), used,
                 gigabytes(sum), gigabytes(most->bytes), most->bytes_per_s / 1e9,
                 most->seconds() * 1e3, link_name(*most, cluster.links.nic_of));
    }
  }
}

void print_each_link(const FanoutPlan& plan, const ClusterSpec& cluster) {
  for (const LinkLoad& link : plan.links) {
    fmt::print("  {:<19} {:>25.3f} {:>8.1f} {:>10.2f}\n", link_name(link, cluster.links.nic_of),
               gigabytes(link.bytes), link.bytes_per_s / 1e9, link.seconds() * 1e3);
  }
}

void print_edges(const FanoutPlan& plan, const PlanFlags& flags) {
  constexpr size_t kFewEdges = 16;
  const size_t shown = flags.all ? plan.edges.size() : std::min(plan.edges.size(), kFewEdges);
  fmt::print("  {:>8} {:>8} {:<8} {:>12}\n", "from GPU", "to GPU", "link", "GB");
  for (size_t i = 0; i < shown; ++i) {
    const FanoutEdge& edge = plan.edges[i];
    fmt::print("  {:>8} {:>8} {:<8} {:>12.3f}\n", edge.from, edge.to, link_class_name(edge.link),
               gigabytes(edge.bytes));
  }
  if (shown < plan.edges.size()) {
    fmt::print("  ... and {} more edges; --all prints them\n", plan.edges.size() - shown);
  }
}

void print_plans(const std::vector<FanoutPlan>& plans, const ClusterSpec& cluster,
                 const PlannedModel& model, const PlanFlags& flags) {
  const StoredFormat& format = model.manifest.format;
  fmt::print("{}: {:.3f} GB stored, {}\n", flags.model.string(), gigabytes(model.manifest.bytes),
             model.quantization.any()
                 ? fmt::format("{} bits in groups of {}", format.bits, format.group_size)
                 : "nothing quantized");
  fmt::print("{}: {} nodes, {} trainer GPUs, {} replicas of {}; chunks of {:.3f} MB\n",
             flags.cluster.string(), cluster.num_nodes, cluster.trainers.size(),
             cluster.num_replicas(), cluster.replica_gpus,
             static_cast<double>(cluster.chunk_bytes) / 1e6);
  for (const FanoutPlan& plan : plans) {
    fmt::print("\n{}: bound {:.2f} ms, expected {:.2f} ms; {} edges, {} chains of at most {}\n",
               fanout_name(plan.strategy), plan.bound_s * 1e3, plan.expected_s * 1e3,
               plan.edges.size(), plan.num_chains, plan.longest_chain);
    print_links(plan, cluster);
    if (flags.all) print_each_link(plan, cluster);
    print_edges(plan, flags);
  }
  fmt::print("\nfastest: {}\n", fanout_name(fastest(plans).strategy));
}

void run_plan(const PlanFlags& flags) {
  if (flags.cluster.empty()) {
    run_memory_report(flags.job);
    return;
  }
  check_flags(flags);
  const ClusterSpec cluster = load_cluster(flags.cluster);
  const PlannedModel model = plan_model(flags.model, flags.group_size, flags.targets);
  const std::vector<FanoutPlan> plans = fanout_plans(cluster, model, flags);
  if (flags.job.json) {
    fmt::print("{}\n", plans_json(plans, cluster, model));
  } else {
    print_plans(plans, cluster, model, flags);
  }
}

}  // namespace

void add_plan_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "plan", "memory and gathered bytes of a job; or a cluster's publications and their time");
  auto flags = std::make_shared<PlanFlags>();  // shared: parse and work are two callbacks
  command->add_option("config", flags->job.config, "YAML file of a job: its memory, rank by rank");
  command->add_option("--set", flags->job.overrides, "overrides a key of the job");
  command->add_option("--device", flags->job.device, "cpu or cuda; default: the job's");
  command->add_option("--micro-batches", flags->job.micro_batches,
                      "of one optimizer step on a rank, for what is gathered (1)");
  command->add_option("--sync", flags->cluster, "YAML file of a cluster: nodes, GPUs, link rates");
  command->add_option("--model", flags->model,
                      "Hugging Face directory; config.json is enough, weights are not read");
  command->add_option("--group-size", flags->group_size,
                      "32, 64 or 128; default: the checkpoint's, else 32");
  command->add_option("--targets", flags->targets,
                      "what is quantized: experts, mlp or linear; default: the checkpoint's, else "
                      "as in convert");
  command->add_flag("--all", flags->all,
                    "print every link and edge, not only sums and the first ones");
  command->add_flag("--json", flags->job.json, "print one JSON object, with all ranks or links");
  command->footer(
      "Example:\n  nibble plan configs/ci/tiny-moe.yaml --set trainer.recompute=full\n"
      "  nibble plan --sync configs/clusters/one-node-4-4.yaml --model "
      "models/Qwen3-30B-A3B --group-size 128");
  command->callback([flags, &context] {
    if (flags->job.config.empty() && flags->cluster.empty()) {
      throw CLI::RequiredError("a job's file or --sync");
    }
    context.run = [flags] { run_plan(*flags); };
  });
}

}  // namespace nibble
