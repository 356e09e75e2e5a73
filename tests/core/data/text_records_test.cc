#include "core/data/text_records.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/base/file.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

class TextRecords : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "nibble_tr_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& text) {
    write_file_atomically(folder_ / "data.jsonl", text);
    return folder_ / "data.jsonl";
  }

  fs::path folder_;
};

TEST_F(TextRecords, ReadsBothFormsAndKeepsLineNumbers) {
  const auto records = read_text_records(
      write("{\"prompt\":\"a\",\"response\":\"b\",\"label\":7}\n\n{\"text\":\"c d\"}\n"
            "{\"prompt\":[{\"role\":\"user\",\"content\":\"x\"}],\"response\":\"y\"}\n"),
      {});
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].prompt, "a");
  EXPECT_EQ(records[0].text, "b");
  EXPECT_EQ(records[1].line, 3);
  EXPECT_TRUE(records[1].prompt.is_null());
  EXPECT_EQ(records[1].text, "c d");
  EXPECT_TRUE(records[2].prompt.is_array());
}

TEST_F(TextRecords, KeysNameOtherFields) {
  const auto records =
      read_text_records(write("{\"question\":\"a\",\"answer\":\"b\"}\n{\"body\":\"c\"}\n"),
                        {"question", "answer", "body"});
  EXPECT_EQ(records[0].text, "b");
  EXPECT_EQ(records[1].text, "c");
}

TEST_F(TextRecords, NamesFileAndLineOfWhatIsWrong) {
  for (const auto& [line, fragment] :
       {std::pair<std::string, std::string>{"{", "JSON"},
        {"[1]", "object"},
        {"{}", "neither 'text' nor 'prompt'"},
        {"{\"prompt\":\"a\"}", "neither 'text' nor 'response'"},
        {"{\"response\":\"a\"}", "neither 'text' nor 'prompt'"},
        {"{\"prompt\":\"a\",\"text\":\"b\"}", "both 'text' and 'prompt'"},
        {"{\"response\":\"a\",\"text\":\"b\"}", "both 'text' and 'response'"},
        {"{\"text\":\"\"}", "non-empty string"},
        {"{\"text\":7}", "non-empty string"},
        {"{\"prompt\":\"a\",\"response\":\"\"}", "'response'"},
        {"{\"prompt\":\"\",\"response\":\"b\"}", "prompt"},
        {"{\"prompt\":[{\"role\":\"user\"}],\"response\":\"b\"}", "content"}}) {
    const fs::path file = write("{\"text\":\"good\"}\n" + line + "\n");
    try {
      read_text_records(file, {});
      ADD_FAILURE() << line;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      const std::string what = error.what();
      EXPECT_NE(what.find(file.string() + ":2"), std::string::npos) << what;
      EXPECT_NE(what.find(fragment), std::string::npos) << what;
    }
  }
  EXPECT_THROW(read_text_records(write("\n"), {}), Error);
  EXPECT_THROW(read_text_records(folder_ / "none", {}), Error);
}

}  // namespace
}  // namespace nibble
