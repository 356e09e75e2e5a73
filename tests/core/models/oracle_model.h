#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/checkpoint/hf_directory.h"
#include "core/models/decoder.h"
#include "core/models/rope_table.h"
#include "core/models/tape_executor.h"
#include "core/models/weights.h"
#include "tests/core/models/test_root.h"

namespace nibble {

/// A tiny checkpoint made by Transformers, with what Transformers computes from it
/// (tests/oracles/models/README.md).
struct OracleModel {
  explicit OracleModel(const std::string& model_name, const std::string& variant = "bf16")
      : name(model_name),
        root(test_root() / "tests/oracles/models" / model_name),
        directory(root / variant),
        io(root / "io.safetensors"),
        spec(make_model_spec(parse_model_config(directory.config(), model_name))),
        weights(load_weights(directory, spec.table)),
        rope(make_rope_table(spec.config.rope, spec.config.head_dim, 1024)) {}

  std::vector<int32_t> ids(int sequence) const {
    const TensorView view = io.tensor("seq" + std::to_string(sequence) + ".input_ids");
    std::vector<int32_t> out;
    const auto count = view.bytes.size() / static_cast<size_t>(dtype_bytes(view.dtype));
    for (size_t i = 0; i < count; ++i) {
      out.push_back(view.dtype == DType::kI64 ? static_cast<int32_t>(view.as<int64_t>()[i])
                                              : view.as<int32_t>()[i]);
    }
    return out;
  }
  int num_sequences() const {
    int count = 0;
    while (io.contains("seq" + std::to_string(count) + ".input_ids")) ++count;
    return count;
  }
  std::vector<float> floats(const std::string& tensor) const {
    const TensorView view = io.tensor(tensor);
    std::vector<float> out(view.bytes.size() / 4);
    std::memcpy(out.data(), view.bytes.data(), out.size() * 4);
    return out;
  }
  std::vector<float> log_probs(int sequence,
                               ActivationType activations = ActivationType::kFloat32) {
    const at::NoGradGuard no_grad;
    const PackedBatch batch = pack_sequence(ids(sequence));
    const TapeResult result = run_log_probs(spec, *weights, rope, {batch}, 1.0f, activations);
    return {result.log_prob.data_ptr<float>(),
            result.log_prob.data_ptr<float>() + result.log_prob.numel()};
  }

  std::string name;
  std::filesystem::path root;
  HfDirectory directory;
  SafetensorsFile io;
  ModelSpec spec;
  std::unique_ptr<ResidentWeights> weights;
  std::shared_ptr<const kernels::RopeTable> rope;
};

inline const std::vector<std::string>& oracle_names() {
  static const std::vector<std::string> names = {"dense_untied", "dense_tied", "moe_norm",
                                                 "moe_nonorm",   "moe_mixed",  "llama_smol"};
  return names;
}

}  // namespace nibble
