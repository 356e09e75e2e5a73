// Draft heads on disk: what is written is read again; names of others' checkpoints are found; what
// does not fit is refused by name.
#include "rollout/draft_head.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/checkpoint/safetensors.h"
#include "rollout/engine/head_weights.h"

namespace nibble {
namespace {

ModelConfig model_config() {
  ModelConfig c;
  c.vocab = 17;
  c.hidden = 32;
  c.intermediate = 48;
  c.num_layers = 2;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 16;
  c.max_position = 64;
  c.qk_norm = true;
  c.layer_is_moe = {true, false};
  c.moe = {4, 2, 16, true};
  return c;
}

class DraftHeadFiles : public ::testing::Test {
 protected:
  DraftHeadFiles() { std::filesystem::remove_all(folder_); }
  ~DraftHeadFiles() override { std::filesystem::remove_all(folder_); }

  std::string refusal(const std::function<void()>& call) const {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  std::shared_ptr<const DraftHead> load(const std::filesystem::path& path) const {
    return load_draft_head("--draft-head", path.string(), model_);
  }
  // Writes a head of other names; `but` of them is left out.
  void write_renamed(const DraftHead& head, const std::string& prefix, const std::string& but,
                     const std::string& more) const {
    std::filesystem::create_directories(folder_);
    const SafetensorsFile file(saved() / "model.safetensors");
    std::vector<TensorInfo> tensors;
    for (TensorInfo info : file.tensors()) {
      if (info.name == but) continue;
      info.name = prefix + info.name;
      tensors.push_back(info);
    }
    for (const std::string& name : {prefix + "embed_tokens.weight", more}) {
      if (!name.empty()) tensors.push_back({name, DType::kBf16, {1}});
    }
    SafetensorsWriter writer(folder_ / "model.safetensors", tensors, {});
    const std::vector<std::byte> one(2);
    for (const TensorInfo& info : tensors) {
      const std::string own =
          info.name.starts_with(prefix) ? info.name.substr(prefix.size()) : info.name;
      writer.write(info.name, file.contains(own) ? file.tensor(own).bytes : std::span(one));
    }
    writer.finish();
    write_file_atomically(folder_ / "config.json",
                          R"({"model_type": "nibble_draft_head", "format_version": 1,
                              "vocab_size": 17, "hidden_size": 32})");
    ASSERT_EQ(head.spec.config.num_layers, 1);
  }
  std::filesystem::path saved() const { return folder_ / "saved"; }

  const std::filesystem::path folder_ =
      std::filesystem::path(::testing::TempDir()) /
      ("draft_head_" + std::to_string(::getpid()) + "_" +
       ::testing::UnitTest::GetInstance()->current_test_info()->name());
  const ModelSpec model_ = make_model_spec(model_config());
};

void expect_same(const DraftHead& got, const DraftHead& want) {
  ASSERT_EQ(got.spec.table.size(), want.spec.table.size());
  for (size_t p = 0; p < want.weights->parameters().size(); ++p) {
    const auto& a = got.weights->parameters()[p].bf16;
    const auto& b = want.weights->parameters()[p].bf16;
    ASSERT_EQ(a.size(), b.size());
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin()))
        << want.spec.table.at(static_cast<int64_t>(p)).name();
  }
}

TEST_F(DraftHeadFiles, WhatIsWrittenIsReadAgain) {
  const auto head = load("random");
  EXPECT_TRUE(head->spec.table.join.exists());
  EXPECT_EQ(head->spec.config.num_moe_layers(), 0);
  save_draft_head(saved(), head->spec, *head->weights);
  expect_same(*load(saved()), *head);
  // Over itself.
  save_draft_head(saved(), head->spec, *head->weights);
  expect_same(*load(saved()), *head);
}

TEST_F(DraftHeadFiles, TensorsMayHaveThePrefixOfAnotherCheckpointAndCopiesOfTheModels) {
  const auto head = load("random");
  save_draft_head(saved(), head->spec, *head->weights);
  write_renamed(*head, "model.layers.61.", "", "");
  expect_same(*load(folder_), *head);
}

TEST_F(DraftHeadFiles, WhatDoesNotFitIsRefusedByName) {
  const auto head = load("random");
  save_draft_head(saved(), head->spec, *head->weights);
  write_renamed(*head, "a.", "hnorm.weight", "");
  EXPECT_NE(refusal([&] { load(folder_); }).find("a.hnorm.weight"), std::string::npos);
  write_renamed(*head, "", "eh_proj.weight", "");
  EXPECT_NE(refusal([&] { load(folder_); }).find("0 tensors '..eh_proj.weight'"),
            std::string::npos);
  write_renamed(*head, "", "", "mlp.experts.0.up_proj.weight");
  EXPECT_NE(refusal([&] { load(folder_); }).find("mlp.experts.0.up_proj.weight"),
            std::string::npos);
  const auto with_config = [&](const std::string& config) {
    write_file_atomically(saved() / "config.json", config);
    return refusal([&] { load(saved()); });
  };
  const std::string start = R"({"model_type": "nibble_draft_head", "format_version": 1, )";
  EXPECT_NE(with_config(start + R"("vocab_size": 18, "hidden_size": 32})")
                .find("vocab_size is 18; want 17"),
            std::string::npos);
  EXPECT_NE(with_config(start + R"("vocab_size": 17, "hidden_size": 32, "layers": 2})")
                .find("unknown key 'layers'"),
            std::string::npos);
  EXPECT_NE(with_config(start + R"("vocab_size": 17, "hidden_size": 32, "head_dim": 20})")
                .find("2 heads of 20"),
            std::string::npos);
  EXPECT_NE(with_config(start + R"("vocab_size": 17, "hidden_size": 32, "intermediate_size": 64})")
                .find("mlp.gate_proj.weight"),
            std::string::npos);
  EXPECT_NE(with_config(R"({"model_type": "llama"})").find("model_type is \"llama\""),
            std::string::npos);
  EXPECT_NE(refusal([&] { load(folder_ / "missing"); }).find("--draft-head"), std::string::npos);
}

}  // namespace
}  // namespace nibble
