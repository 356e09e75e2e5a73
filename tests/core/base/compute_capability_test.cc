#include "core/base/compute_capability.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"

namespace nibble {
namespace {

TEST(ComputeCapability, AmpereAndNewerAreTaken) {
  EXPECT_NO_THROW(check_compute_capability(0, "NVIDIA A100", 8, 0));
  EXPECT_NO_THROW(check_compute_capability(0, "NVIDIA L4", 8, 9));
  EXPECT_NO_THROW(check_compute_capability(0, "NVIDIA H100", 9, 0));
  EXPECT_NO_THROW(check_compute_capability(0, "NVIDIA B200", 10, 0));
}

TEST(ComputeCapability, OlderIsRefusedByName) {
  try {
    check_compute_capability(3, "Tesla T4", 7, 5);
    FAIL() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kFailedPrecondition);
    EXPECT_THAT(error.what(), testing::HasSubstr("GPU 3 ('Tesla T4')"));
    EXPECT_THAT(error.what(), testing::HasSubstr("7.5"));
    EXPECT_THAT(error.what(), testing::HasSubstr("8.0"));
  }
}

}  // namespace
}  // namespace nibble
