#include "weight_sync/manifest.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "core/base/error.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

struct Checkpoint {
  explicit Checkpoint(const std::string& model)
      : directory(std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/oracles/models" / model /
                  "int4_sym7"),
        table(model_parameters(parse_model_config(directory.config(), model))),
        plan(plan_from_config(table, *parse_quantization_config(directory.config(), model))) {}
  HfDirectory directory;
  ParameterTable table;
  QuantizationPlan plan;
};

TEST(Manifest, ListsTheTensorsThatACompressedTensorsCheckpointStores) {
  for (const char* model : {"dense_untied", "dense_tied", "moe_norm", "moe_mixed", "llama_smol"}) {
    const Checkpoint checkpoint(model);
    const Manifest manifest = make_manifest(checkpoint.table, checkpoint.plan);
    size_t stored = 0;
    for (const TensorInfo& info : checkpoint.directory.tensors()) {
      stored += info.name.ends_with(".weight_shape") ? 0 : 1;
    }
    EXPECT_EQ(manifest.tensors.size(), stored);
    for (const StoredTensor& tensor : manifest.tensors) {
      const TensorView view = checkpoint.directory.tensor(tensor.name);
      EXPECT_EQ(tensor.bytes(), static_cast<int64_t>(view.bytes.size())) << tensor.name;
      EXPECT_EQ(tensor.row_elements, view.shape.back()) << tensor.name;
      EXPECT_EQ(tensor.element_bytes(), dtype_bytes(view.dtype)) << tensor.name;
    }
  }
}

TEST(Manifest, DigestFollowsGroupGridAndShapes) {
  const Checkpoint checkpoint("dense_untied");
  const Manifest manifest = make_manifest(checkpoint.table, checkpoint.plan);
  EXPECT_EQ(make_manifest(checkpoint.table, checkpoint.plan).digest, manifest.digest);
  QuantizationPlan coarse = checkpoint.plan;
  coarse.config.group_size = 64;
  EXPECT_NE(make_manifest(checkpoint.table, coarse).digest, manifest.digest);
  EXPECT_NE(make_manifest(checkpoint.table, checkpoint.plan, "held").digest, manifest.digest);
  EXPECT_NE(make_manifest(checkpoint.table, plan_bf16(checkpoint.table)).digest, manifest.digest);
  ParameterTable longer = checkpoint.table;
  longer.parameters[0].rows += 1;
  EXPECT_NE(make_manifest(longer, checkpoint.plan).digest, manifest.digest);
}

TEST(ManifestDiff, SaysInOneSentenceWhatDiffers) {
  const Checkpoint checkpoint("dense_untied");
  const std::string text = manifest_text(make_manifest(checkpoint.table, checkpoint.plan));
  EXPECT_EQ(manifest_diff(text, text), std::nullopt);
  QuantizationPlan coarse = checkpoint.plan;
  coarse.config.group_size = 128;
  EXPECT_EQ(manifest_diff(manifest_text(make_manifest(checkpoint.table, coarse)), text),
            "the weights differ in group_size: the trainer has '128', the worker '32'");
  ParameterTable longer = checkpoint.table;
  longer.parameters[0].rows = 600;
  EXPECT_EQ(manifest_diff(text, manifest_text(make_manifest(longer, checkpoint.plan))),
            "the weights differ in tensor model.embed_tokens.weight: the trainer has 'bf16 [512, "
            "128]', the worker 'bf16 [600, 128]'");
  ParameterTable shorter = checkpoint.table;
  shorter.parameters.pop_back();
  const std::string without = manifest_text(make_manifest(shorter, checkpoint.plan));
  EXPECT_EQ(manifest_diff(text, without),
            "the worker's model has no tensor lm_head.weight, which the trainer's has");
  EXPECT_EQ(manifest_diff(without, text),
            "the trainer's model has no tensor lm_head.weight, which the worker's has");
}

TEST(ManifestDiff, ReadsAnyText) {
  EXPECT_NE(manifest_diff("", "a=1\n"), std::nullopt);
  EXPECT_NE(manifest_diff("\n\n==\n", "no equals sign"), std::nullopt);
  EXPECT_THAT(manifest_diff("a=1\nb=2\n", "b=2\na=1\n").value_or(""), HasSubstr("order"));
}

TEST(Digest, TravelsAsSixteenBytes) {
  const Digest digest{0x0123456789abcdef, 0xfedcba9876543210};
  EXPECT_EQ(digest_hex(digest), "fedcba98765432100123456789abcdef");
  EXPECT_EQ(digest_from_bytes(digest_bytes(digest)), digest);
  EXPECT_EQ(digest_bytes(digest)[0], static_cast<char>(0xef));
  EXPECT_THROW(digest_from_bytes("short"), Error);
}

}  // namespace
}  // namespace nibble
