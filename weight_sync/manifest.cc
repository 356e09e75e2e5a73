#include "weight_sync/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace nibble {
namespace {

const char* kind_name(StoredKind kind) {
  switch (kind) {
    case StoredKind::kWords:
      return "u32";
    case StoredKind::kScale:
      return "bf16 scale";
    case StoredKind::kBf16:
      return "bf16";
  }
  return "";
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// A line is "key=value".
std::string_view key_of(std::string_view line) { return line.substr(0, line.find('=')); }
std::string_view value_of(std::string_view line) {
  const size_t at = line.find('=');
  return at == std::string_view::npos ? std::string_view() : line.substr(at + 1);
}

bool has_key(const std::vector<std::string_view>& lines, std::string_view key) {
  return std::any_of(lines.begin(), lines.end(),
                     [key](std::string_view line) { return key_of(line) == key; });
}

}  // namespace

Manifest make_manifest(const ParameterTable& table, const QuantizationPlan& plan,
                       const std::string& grid) {
  Manifest manifest;
  if (plan.any()) {
    manifest.format.bits = plan.config.bits;
    manifest.format.group_size = plan.config.group_size;
    manifest.format.grid = grid;
  }
  for (int64_t p = 0; p < table.size(); ++p) {
    const ParameterSpec& parameter = table.at(p);
    if (plan.quantized[static_cast<size_t>(p)]) {
      const int64_t row_words = (parameter.cols * plan.config.bits + 31) / 32;
      manifest.tensors.push_back(
          {parameter.module + ".weight_packed", StoredKind::kWords, p, parameter.rows, row_words});
      manifest.tensors.push_back({parameter.module + ".weight_scale", StoredKind::kScale, p,
                                  parameter.rows, parameter.cols / plan.config.group_size});
    } else {
      manifest.tensors.push_back(
          {parameter.name(), StoredKind::kBf16, p, parameter.rows, parameter.cols});
    }
  }
  for (StoredTensor& tensor : manifest.tensors) {
    tensor.is_frozen = table.at(tensor.parameter).is_frozen;
    manifest.bytes += tensor.bytes();
  }
  DigestBuilder builder;
  builder.add(std::string_view(manifest_text(manifest)));
  manifest.digest = builder.digest();
  return manifest;
}

std::string manifest_text(const Manifest& manifest) {
  const StoredFormat& format = manifest.format;
  std::string text = fmt::format(
      "format=1\nbits={}\ngroup_size={}\ngrid={}\nscale_type={}\npack_order={}\nlayout={}\n",
      format.bits, format.group_size, format.grid, format.scale_type, format.pack_order,
      format.layout);
  for (const StoredTensor& tensor : manifest.tensors) {
    fmt::format_to(std::back_inserter(text), "tensor {}={} [{}, {}]\n", tensor.name,
                   kind_name(tensor.kind), tensor.rows, tensor.row_elements);
  }
  const auto frozen = std::count_if(manifest.tensors.begin(), manifest.tensors.end(),
                                    [](const StoredTensor& tensor) { return tensor.is_frozen; });
  if (frozen > 0) fmt::format_to(std::back_inserter(text), "frozen={}\n", frozen);
  return text;
}

std::optional<std::string> manifest_diff(std::string_view trainer_text,
                                         std::string_view worker_text) {
  if (trainer_text == worker_text) return std::nullopt;
  const auto trainer = lines_of(trainer_text);
  const auto worker = lines_of(worker_text);
  const size_t common = std::min(trainer.size(), worker.size());
  size_t i = 0;
  while (i < common && trainer[i] == worker[i]) ++i;
  if (i < common && key_of(trainer[i]) == key_of(worker[i])) {
    return fmt::format("the weights differ in {}: the trainer has '{}', the worker '{}'",
                       key_of(trainer[i]), value_of(trainer[i]), value_of(worker[i]));
  }
  if (i < trainer.size() && !has_key(worker, key_of(trainer[i]))) {
    return fmt::format("the worker's model has no {}, which the trainer's has", key_of(trainer[i]));
  }
  if (i < worker.size() && !has_key(trainer, key_of(worker[i]))) {
    return fmt::format("the trainer's model has no {}, which the worker's has", key_of(worker[i]));
  }
  return fmt::format("the models list their tensors in a different order from line {} on", i + 1);
}

}  // namespace nibble
