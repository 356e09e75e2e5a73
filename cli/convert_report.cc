#include "cli/convert_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>

#include "core/base/json.h"

namespace nibble {
namespace {

OrderedJson held_out_json(const HeldOutResult& held_out) {
  return {{"tokens", held_out.tokens},
          {"kl", held_out.kl},
          {"perplexity", held_out.perplexity},
          {"reference_perplexity", held_out.reference_perplexity}};
}

double megabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e6; }

// Of several matrices.
struct Errors {
  int64_t count = 0;
  double weight = 0.0, output = 0.0, nearest = 0.0, seconds = 0.0;
  void add(const ConvertedMatrix& m) {
    ++count;
    weight += m.relative_rms_error;
    if (!m.calibration) return;
    output += m.calibration->output_error;
    nearest += m.calibration->nearest_output_error;
    seconds += m.calibration->elapsed_ms / 1e3;
  }
  double mean(double sum) const { return sum / static_cast<double>(count); }
};

// "q_proj" of "model.layers.3.self_attn.q_proj".
std::string kind_of(const std::string& module) { return module.substr(module.rfind('.') + 1); }

void append_kinds(const ConvertReport& report, std::string& text) {
  std::map<std::string, Errors> kinds;
  for (const ConvertedMatrix& m : report.matrices) kinds[kind_of(m.module)].add(m);
  fmt::format_to(std::back_inserter(text), "{:<12} {:>8} {:>10} {:>12} {:>16} {:>8} {:>8}\n",
                 "matrices", "number", "weights", "outputs", "outputs, rtn", "ratio", "s");
  for (const auto& [kind, e] : kinds) {
    fmt::format_to(std::back_inserter(text),
                   "{:<12} {:>8} {:>10.5f} {:>12.5f} {:>16.5f} {:>8.3f} {:>8.1f}\n", kind, e.count,
                   e.mean(e.weight), e.mean(e.output), e.mean(e.nearest),
                   e.nearest > 0.0 ? e.output / e.nearest : 0.0, e.seconds);
  }
  text += "(errors: root mean squares, relative, mean over matrices; rtn: rounded to nearest)\n";
}

}  // namespace

std::string convert_report_json(const ConvertReport& report, const ConvertOptions& options) {
  OrderedJson layers = OrderedJson::array();
  for (const ConvertedMatrix& m : report.matrices) layers.push_back(to_json(m));
  OrderedJson root = {{"output_dir", options.output.directory.string()},
                      {"method", options.method == QuantMethod::kGptq ? "gptq" : "rtn"},
                      {"bits", report.quantization.bits},
                      {"group_size", report.quantization.group_size},
                      {"ignore", report.quantization.ignore},
                      {"input_bytes", report.input_bytes},
                      {"output_bytes", report.output_bytes},
                      {"elapsed_ms", report.elapsed_ms},
                      {"calibration_tokens", report.calibration_tokens},
                      {"resumed_layers", report.resumed_layers}};
  if (report.held_out) root["held_out"] = held_out_json(*report.held_out);
  root["warnings"] = report.warnings;
  root["layers"] = layers;
  return root.dump();
}

std::string convert_report_text(const ConvertReport& report, const ConvertOptions& options) {
  Errors all;
  const ConvertedMatrix* worst = &report.matrices.front();
  for (const ConvertedMatrix& m : report.matrices) {
    all.add(m);
    if (m.relative_rms_error > worst->relative_rms_error) worst = &m;
  }
  std::string text = fmt::format(
      "{}: {} matrices in {} bits, groups of {}; {:.1f} MB -> {:.1f} MB in {:.1f} s\n",
      options.output.directory.string(), report.matrices.size(), report.quantization.bits,
      report.quantization.group_size, megabytes(report.input_bytes), megabytes(report.output_bytes),
      report.elapsed_ms / 1000.0);
  if (report.resumed_layers > 0) {
    text += fmt::format("{} layers were there from an interrupted run\n", report.resumed_layers);
  }
  text += fmt::format("relative RMS error of a matrix: mean {:.5f}, worst {:.5f} ({})\n",
                      all.mean(all.weight), worst->relative_rms_error, worst->module);
  if (all.output > 0.0) append_kinds(report, text);
  if (report.held_out) {
    const HeldOutResult& h = *report.held_out;
    text += fmt::format(
        "held-out text, {} tokens: KL to the original {:.5f}, perplexity {:.4f} (original "
        "{:.4f})\n",
        h.tokens, h.kl, h.perplexity, h.reference_perplexity);
  }
  return text;
}

std::string comparison_json(std::span<const GroupSizeResult> results) {
  OrderedJson sizes = OrderedJson::array();
  for (const GroupSizeResult& r : results) {
    OrderedJson size = {{"group_size", r.group_size}, {"undivided", r.undivided}};
    if (r.undivided.empty()) {
      size["output_bytes"] = r.output_bytes;
      if (r.output_error) size["output_error"] = *r.output_error;
      size["held_out"] = held_out_json(r.held_out);
    }
    sizes.push_back(std::move(size));
  }
  return OrderedJson({{"group_sizes", sizes}}).dump();
}

std::string comparison_text(std::span<const GroupSizeResult> results) {
  std::string text = fmt::format("{:>10} {:>10} {:>12} {:>12} {:>12}\n", "group size", "MB", "KL",
                                 "perplexity", "output error");
  constexpr size_t kMostNames = 8;
  for (const GroupSizeResult& r : results) {
    if (r.undivided.empty()) {
      fmt::format_to(std::back_inserter(text), "{:>10} {:>10.1f} {:>12.5f} {:>12.4f} {:>12}\n",
                     r.group_size, megabytes(r.output_bytes), r.held_out.kl, r.held_out.perplexity,
                     r.output_error ? fmt::format("{:.5f}", *r.output_error) : "-");
      continue;
    }
    fmt::format_to(std::back_inserter(text),
                   "{:>10} does not divide the inputs of {} matrices: {}{}\n", r.group_size,
                   r.undivided.size(),
                   fmt::join(r.undivided.begin(),
                             r.undivided.begin() +
                                 static_cast<ptrdiff_t>(std::min(kMostNames, r.undivided.size())),
                             ", "),
                   r.undivided.size() > kMostNames ? ", ..." : "");
  }
  for (const GroupSizeResult& r : results) {
    if (!r.undivided.empty()) continue;
    fmt::format_to(std::back_inserter(text),
                   "{} held-out tokens; perplexity of the original: {:.4f}\n", r.held_out.tokens,
                   r.held_out.reference_perplexity);
    break;
  }
  return text;
}

}  // namespace nibble
