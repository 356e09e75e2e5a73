#include "trainer/algo/overlong.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {

double overlong_penalty(int64_t length, int64_t max_length, int64_t cache_length) {
  if (length < 0 || cache_length <= 0 || cache_length > max_length) {
    fail(ErrorCode::kInvalidArgument,
         "overlong penalty: length {}, cache_length {}, max_length {}; want length >= 0 and "
         "0 < cache_length <= max_length",
         length, cache_length, max_length);
  }
  const int64_t exceeded =
      std::clamp<int64_t>(length - (max_length - cache_length), 0, cache_length);
  return -static_cast<double>(exceeded) / static_cast<double>(cache_length);
}

}  // namespace nibble
