#include "rollout/engine/draw.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace nibble {

void complete_draw(const float* logits, int64_t vocab, Draw& draw) {
  kernels::RowStats stats;
  kernels::log_softmax_stats(logits, 1, vocab, 1.0f, &stats, kernels::Serial());
  draw.plain_log_prob = stats.log_prob(logits[draw.token], 1.0f);
  draw.top.clear();
  const auto count = static_cast<ptrdiff_t>(std::min<int64_t>(draw.num_top, vocab));
  if (count == 0) return;
  std::vector<int32_t> ids(static_cast<size_t>(vocab));
  std::iota(ids.begin(), ids.end(), 0);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (ptrdiff_t i = 0; i < count; ++i) {
    const int32_t token = ids[static_cast<size_t>(i)];
    draw.top.push_back({token, stats.log_prob(logits[token], 1.0f)});
  }
}

}  // namespace nibble
