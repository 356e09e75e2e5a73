#include "trainer/algo/kl.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "tests/trainer/algo/near.h"

namespace nibble {
namespace {

const std::map<std::string, KlEstimator> kEstimators = {{"k1", KlEstimator::kK1},
                                                        {"k2", KlEstimator::kK2},
                                                        {"k3", KlEstimator::kK3},
                                                        {"low_var_kl", KlEstimator::kLowVarKl}};

TEST(KlTerm, MatchesTheOracleInValueAndGradient) {
  const Json fixture = rl_fixture("kl.json");
  const auto logp = fixture["logp"].get<std::vector<double>>();
  const auto ref_logp = fixture["ref_logp"].get<std::vector<double>>();
  const auto old_logp = fixture["old_logp"].get<std::vector<double>>();
  ASSERT_FALSE(logp.empty());
  for (const auto& [name, estimator] : kEstimators) {
    const Json& plain = fixture["estimators"][name];
    const Json& unbiased = fixture["estimators"][name + "_unbiased"];
    for (size_t i = 0; i < logp.size(); ++i) {
      const KlTerm term = kl_term(estimator, logp[i], ref_logp[i]);
      expect_near_double(term.value, plain["value"][i].get<double>(), name);
      expect_near_double(term.grad_logp, plain["grad_logp"][i].get<double>(), name + " gradient");
      const KlTerm weighted = unbiased_kl_term(estimator, logp[i], ref_logp[i], old_logp[i]);
      expect_near_double(weighted.value, unbiased["value"][i].get<double>(), name + "_unbiased");
      expect_near_double(weighted.grad_logp, unbiased["grad_logp"][i].get<double>(),
                         name + "_unbiased gradient");
    }
  }
}

TEST(KlTerm, LowVarianceStaysFiniteWhereTheReferenceIsFarAway) {
  for (const double ref_logp : {-1e4, 1e4}) {
    const KlTerm term = unbiased_kl_term(KlEstimator::kLowVarKl, -1.0, ref_logp, -1e4);
    EXPECT_EQ(term.value, 10);
    EXPECT_EQ(term.grad_logp, 0);
  }
}

}  // namespace
}  // namespace nibble
