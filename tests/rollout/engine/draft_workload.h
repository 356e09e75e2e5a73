#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "rollout/engine/request.h"
#include "tests/core/models/oracle_model.h"

namespace nibble {

inline void expect_same(const std::vector<Completion>& got, const std::vector<Completion>& want,
                        const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].id, want[i].id);
    ASSERT_EQ(got[i].tokens, want[i].tokens) << what << " request " << i;
    ASSERT_EQ(got[i].log_probs.size(), want[i].log_probs.size());
    ASSERT_EQ(std::memcmp(got[i].log_probs.data(), want[i].log_probs.data(),
                          got[i].log_probs.size() * sizeof(float)),
              0)
        << what << " request " << i;
    ASSERT_EQ(got[i].routes.bytes, want[i].routes.bytes) << what << " request " << i;
  }
}

/// Prompts of 11, 11 (its first 7 the same), 5 and 1 tokens with differently sampled requests each.
///   longest  new tokens of the first request of each prompt; one less of each that follows
inline std::vector<GenerateRequest> draft_workload(const OracleModel& model, int64_t longest,
                                                   bool is_greedy = false) {
  const std::vector<int32_t> text = model.ids(model.num_sequences() - 1);
  std::vector<std::vector<int32_t>> prompts = {{text.begin(), text.begin() + 11},
                                               {text.begin(), text.begin() + 11},
                                               {text.begin() + 11, text.begin() + 16},
                                               {text.begin() + 16, text.begin() + 17}};
  std::reverse(prompts[1].begin() + 7, prompts[1].end());
  const std::vector<kernels::SamplingParams> samplings = {
      {1.0f, 0, 1.0f}, {1.0f, 20, 1.0f}, {0.7f, 0, 0.9f}, {0.0f, 0, 1.0f}};
  std::vector<GenerateRequest> out;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (size_t s = 0; s < samplings.size(); ++s) {
      GenerateRequest request;
      request.id = out.size();
      request.prompt_id = 1000 + p;
      request.sample_index = static_cast<uint32_t>(s);
      request.prompt = prompts[p];
      request.max_new_tokens = longest - static_cast<int64_t>(s);
      request.sampling = is_greedy ? kernels::SamplingParams{0.0f, 0, 1.0f} : samplings[s];
      request.seed = 99;
      request.want_routes = true;
      out.push_back(std::move(request));
    }
  }
  return out;
}

}  // namespace nibble
