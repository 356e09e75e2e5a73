#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/file.h"

namespace nibble {

/// A test with a folder of its own.
class DataFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "nibble_data_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& name, const std::string& text) const {
    write_file_atomically(folder_ / name, text);
    return folder_ / name;
  }

  std::filesystem::path folder_;
};

/// That `body` throws an Error with this code whose message has each of `fragments`.
template <typename Body>
void expect_error(ErrorCode code, const std::vector<std::string>& fragments, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error with '" << (fragments.empty() ? "" : fragments[0]) << "'";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_EQ(error.code(), code) << what;
    for (const std::string& fragment : fragments) {
      EXPECT_NE(what.find(fragment), std::string::npos) << "'" << fragment << "' in: " << what;
    }
  }
}

}  // namespace nibble
