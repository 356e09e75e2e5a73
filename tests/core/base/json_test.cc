#include "core/base/json.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace nibble {
namespace {

TEST(ParseJson, KeepsNumbersAndOrder) {
  const auto value = parse_ordered_json(R"({"b": 1, "a": [1.5, "x"]})", "test");
  EXPECT_EQ(value.dump(), R"({"b":1,"a":[1.5,"x"]})");
}

TEST(ParseJson, RefusesDuplicateKeysTrailingTextAndDeepNesting) {
  EXPECT_THROW(parse_json(R"({"a":1,"a":2})", "test"), Error);
  EXPECT_THROW(parse_json("{} x", "test"), Error);
  EXPECT_THROW(parse_json("{", "test"), Error);
  EXPECT_THROW(parse_json(std::string_view("{}\0 x", 5), "test"), Error);
  EXPECT_THROW(parse_json(std::string(1000, '[') + std::string(1000, ']'), "test"), Error);
  EXPECT_NO_THROW(parse_json(R"([{"a":1},{"a":2}])", "test"));
}

}  // namespace
}  // namespace nibble
