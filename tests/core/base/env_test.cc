#include "core/base/env.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/base/error.h"

namespace nibble {
namespace {

class EnvTest : public ::testing::Test {
 protected:
  void TearDown() override {
    unsetenv("OPEN_TRAINING_INT4_FAKE_QAT_FLAG");
    unsetenv("OPEN_TRAINING_INT4_GROUP_SIZE");
  }
};

TEST_F(EnvTest, ReadsTheIncumbentsVariables) {
  setenv("OPEN_TRAINING_INT4_FAKE_QAT_FLAG", "1", 1);
  setenv("OPEN_TRAINING_INT4_GROUP_SIZE", "64", 1);
  const Env env = read_env();
  EXPECT_EQ(env.fake_qat_flag, true);
  EXPECT_EQ(env.fake_qat_group, 64);
}

TEST_F(EnvTest, AbsentVariablesOverrideNothing) {
  const Env env = read_env();
  EXPECT_FALSE(env.fake_qat_flag.has_value());
  EXPECT_FALSE(env.fake_qat_group.has_value());
}

TEST_F(EnvTest, AVariableThatAUserNamesIsReadUnlessItIsEmpty) {
  setenv("NIBBLE_TEST_KEY", "secret", 1);
  EXPECT_EQ(read_env_variable("NIBBLE_TEST_KEY"), "secret");
  setenv("NIBBLE_TEST_KEY", "", 1);
  EXPECT_FALSE(read_env_variable("NIBBLE_TEST_KEY").has_value());
  unsetenv("NIBBLE_TEST_KEY");
  EXPECT_FALSE(read_env_variable("NIBBLE_TEST_KEY").has_value());
}

TEST_F(EnvTest, BadValueIsRefusedByName) {
  setenv("OPEN_TRAINING_INT4_GROUP_SIZE", "48", 1);
  try {
    read_env();
    FAIL() << "48 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("OPEN_TRAINING_INT4_GROUP_SIZE"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
