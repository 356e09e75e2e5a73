#include "tests/coordinator/sim_model.h"

#include <random>

#include "weight_sync/stored_bytes.h"

namespace nibble {

SimModel::SimModel() {
  config.architecture = Architecture::kQwen3Moe;
  config.vocab = 6;
  config.hidden = 32;
  config.intermediate = 32;
  config.num_layers = 1;
  config.num_heads = 1;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.qk_norm = true;
  config.moe = {2, 1, 32, true};
  config.layer_is_moe = {true};
  table = model_parameters(config);
  quantization = plan_quantization(table, QuantTargets::kLinear, 4, 32);
  manifest = make_manifest(table, quantization);
}

const std::shared_ptr<const std::vector<StoredParameter>>& SimModel::version(
    int64_t version) const {
  auto& made = versions_[version];  // a map's places stay
  if (made) return made;
  std::mt19937 random(static_cast<uint32_t>(version));
  auto parameters = std::make_shared<std::vector<StoredParameter>>();
  // Version 1 is random; each other one changes one element in 16 of the one before.
  const auto change = [&](auto& values) {
    using Value = std::decay_t<decltype(values[0])>;
    for (auto& value : values) {
      if (version == 1) value = static_cast<Value>(random());
      if (random() % 16 == 0) value = static_cast<Value>(value ^ (1u << random() % 16));
    }
  };
  for (int64_t p = 0; p < table.size(); ++p) {
    StoredParameter out =
        version > 1 ? (*this->version(version - 1))[static_cast<size_t>(p)].to(DeviceKind::kCpu)
                    : StoredParameter::make(table.at(p), table.at(p).rows, quantization,
                                            quantization.quantized[static_cast<size_t>(p)],
                                            DeviceKind::kCpu);
    change(out.words);
    change(out.scale);
    change(out.bf16);
    parameters->push_back(std::move(out));
  }
  made = std::move(parameters);
  return made;
}

const std::vector<quant::ContentHash>& SimModel::hashes(int64_t version) const {
  auto& known = hashes_[version];
  if (known.empty()) {
    const auto whole = owned_slices(manifest, table, {1}, 0);
    known =
        content_hashes(manifest, shard_tensors(manifest, *this->version(version), whole), kernels);
  }
  return known;
}

}  // namespace nibble
