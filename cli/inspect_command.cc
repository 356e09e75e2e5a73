#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/checkpoint_summary.h"
#include "cli/command.h"
#include "core/base/json.h"
#include "trainer/state/checkpoint_reader.h"

namespace nibble {
namespace {

struct InspectFlags {
  std::filesystem::path path;
  bool json = false;
};

template <typename T>
OrderedJson or_null(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}

OrderedJson summary_json(const CheckpointSummary& summary) {
  const ModelConfig& model = summary.model;
  OrderedJson quantization;
  if (summary.quantization) {
    quantization = {{"bits", summary.quantization->bits},
                    {"group_size", summary.quantization->group_size},
                    {"quantized_parameters", summary.num_quantized},
                    {"ignore", summary.quantization->ignore}};
  }
  return {{"path", summary.path.string()},
          {"format", summary.format},
          {"architecture", architecture_name(model.architecture)},
          {"parameters", summary.num_parameters},
          {"layers", model.num_layers},
          {"hidden_size", model.hidden},
          {"vocab_size", model.vocab},
          {"experts", model.moe.num_experts},
          {"tied_embeddings", model.tied_embeddings},
          {"tensors", summary.num_tensors},
          {"bytes", summary.num_bytes},
          {"dtypes", summary.dtypes},
          {"quantization", quantization},
          {"weights_sha256", summary.weights_sha256},
          {"state_sha256", or_null(summary.state_sha256)},
          {"weight_version", or_null(summary.weight_version)},
          {"step", or_null(summary.step)}};
}

void print_summary(const CheckpointSummary& summary) {
  const ModelConfig& model = summary.model;
  fmt::print("{}: {} checkpoint\n", summary.path.string(), summary.format);
  fmt::print("  architecture    {}: {} layers, hidden {}, vocabulary {}{}\n",
             architecture_name(model.architecture), model.num_layers, model.hidden, model.vocab,
             model.tied_embeddings ? ", tied embeddings" : "");
  if (model.moe.num_experts > 0) {
    fmt::print("  experts         {} in {} layers, {} a token\n", model.moe.num_experts,
               model.num_moe_layers(), model.moe.top_k);
  }
  fmt::print("  parameters      {:.1f} M\n", static_cast<double>(summary.num_parameters) / 1e6);
  fmt::print("  stored          {} tensors ({}), {:.1f} MB\n", summary.num_tensors,
             fmt::join(summary.dtypes, ", "), static_cast<double>(summary.num_bytes) / 1e6);
  if (summary.quantization) {
    fmt::print(
        "  quantization    {} bits, groups of {}: {:.1f} % of the parameters; {} modules "
        "ignored\n",
        summary.quantization->bits, summary.quantization->group_size,
        100.0 * static_cast<double>(summary.num_quantized) /
            static_cast<double>(summary.num_parameters),
        summary.quantization->ignore.size());
  } else {
    fmt::print("  quantization    none\n");
  }
  if (summary.step) fmt::print("  step            {}\n", *summary.step);
  if (summary.weight_version) fmt::print("  weight version  {}\n", *summary.weight_version);
  fmt::print("  weights sha256  {}\n", summary.weights_sha256);
  if (summary.state_sha256) fmt::print("  state sha256    {}\n", *summary.state_sha256);
}

void run_inspect(const InspectFlags& flags) {
  refuse_run_directory(flags.path);
  const CheckpointSummary summary = is_train_checkpoint(flags.path)
                                        ? summarize_train_checkpoint(flags.path)
                                        : summarize_hf_directory(flags.path);
  if (flags.json) {
    fmt::print("{}\n", summary_json(summary).dump());
  } else {
    print_summary(summary);
  }
}

}  // namespace

void add_inspect_command(CLI::App& app, CommandContext& context) {
  CLI::App* command = app.add_subcommand(
      "inspect", "What a checkpoint holds: architecture, sizes, quantization, hash of its weights");
  auto flags = std::make_shared<InspectFlags>();  // shared: parse and work are two callbacks
  command->add_option("path", flags->path, "Hugging Face directory or training checkpoint")
      ->required();
  command->add_flag("--json", flags->json, "print one JSON object");
  command->footer(
      "Example:\n  nibble inspect models/Qwen3-0.6B-int4 --json\n"
      "  nibble inspect runs/quickstart/checkpoints/step-000040");
  command->callback([flags, &context] { context.run = [flags] { run_inspect(*flags); }; });
}

}  // namespace nibble
