#include "core/data/prompts.h"

#include <gtest/gtest.h>

#include <set>

#include "core/base/error.h"
#include "core/base/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

TEST(PromptStream, VisitsEveryPromptOnceAnEpochInANewOrderAndResumesAnywhere) {
  PromptStream stream(17, 5, true);
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 51; ++i) order.push_back(stream.index_at(i));
  for (int epoch = 0; epoch < 3; ++epoch) {
    const std::set<int64_t> seen(order.begin() + 17 * epoch, order.begin() + 17 * (epoch + 1));
    EXPECT_EQ(seen.size(), 17u);
  }
  EXPECT_FALSE(std::equal(order.begin(), order.begin() + 17, order.begin() + 17));
  PromptStream other(17, 5, true);
  EXPECT_EQ(other.index_at(40), order[40]);
  EXPECT_EQ(other.index_at(3), order[3]);
  PromptStream plain(17, 5, false);
  EXPECT_EQ(plain.index_at(20), 3);
}

TEST(ReadPrompts, NamesFileAndLineOfWhatIsWrong) {
  std::string name = (fs::temp_directory_path() / "nibble_pr_XXXXXX").string();
  ASSERT_NE(mkdtemp(name.data()), nullptr);
  const fs::path file = fs::path(name) / "data.jsonl";
  const auto refused = [&](const std::string& second_line, const std::string& fragment) {
    write_file_atomically(file, "{\"prompt\":\"a\",\"label\":1}\n" + second_line + "\n");
    try {
      read_prompts(file, "prompt", "label");
      ADD_FAILURE() << second_line;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("data.jsonl:2"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(fragment), std::string::npos) << error.what();
    }
  };
  refused("{", "JSON");
  refused("{\"prompt\":\"a\"}", "label");
  refused("{\"prompt\":7,\"label\":1}", "prompt");
  refused("{\"prompt\":\"\",\"label\":1}", "non-empty");
  refused("{\"prompt\":[{\"role\":\"user\"}],\"label\":1}", "content");
  refused("[1]", "object");
  write_file_atomically(
      file, "{\"prompt\":[{\"role\":\"user\",\"content\":\"x\"}],\"label\":{\"a\":1}}\n\n");
  EXPECT_EQ(read_prompts(file, "prompt", "label").size(), 1u);
  write_file_atomically(file, "\n");
  EXPECT_THROW(read_prompts(file, "prompt", "label"), Error);
  EXPECT_THROW(read_prompts(file.string() + "x", "prompt", "label"), Error);
  fs::remove_all(name);
}

}  // namespace
}  // namespace nibble
