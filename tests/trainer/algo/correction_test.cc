#include "trainer/algo/correction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "core/base/error.h"
#include "tests/trainer/algo/near.h"

namespace nibble {
namespace {

MisLevel level_of(const std::string& name) {
  const std::map<std::string, MisLevel> levels = {{"token", MisLevel::kToken},
                                                  {"sequence", MisLevel::kSequence},
                                                  {"geometric", MisLevel::kGeometric}};
  return levels.at(name);
}

CorrectionConfig read_config(const Json& params) {
  const std::map<std::string, MisMode> modes = {
      {"truncate", MisMode::kTruncate}, {"clip", MisMode::kClip}, {"mask", MisMode::kMask}};
  CorrectionConfig config;
  config.kind = OffPolicyCorrection::kMis;
  config.mode = modes.at(params["mode"]);
  config.level = level_of(params["level"]);
  config.high = params["tis_high"];
  config.low = params.value("tis_low", 1 / config.high);
  config.veto = params.value("veto", 0.0);
  if (params.value("use_rs", false)) config.reject_level = level_of(params["rs_level"]);
  if (params.contains("rs_low")) config.reject_low = params["rs_low"].get<double>();
  if (params.contains("rs_high")) config.reject_high = params["rs_high"].get<double>();
  return config;
}

// Places of one row's unmasked tokens.
std::vector<size_t> unmasked(const Json& mask) {
  std::vector<size_t> places;
  for (size_t i = 0; i < mask.size(); ++i) {
    if (mask[i].get<double>() != 0) places.push_back(i);
  }
  return places;
}

TEST(Mis, MatchesTheOracleInWeightsAndMasks) {
  const Json fixture = rl_fixture("mis.json");
  ASSERT_EQ(fixture.size(), 7u);
  for (const Json& json : fixture) {
    const CorrectionConfig config = read_config(json["params"]);
    ASSERT_NO_THROW(validate(config));
    std::vector<std::vector<TokenCorrection>> samples;
    for (size_t s = 0; s < json["mask"].size(); ++s) {
      std::vector<double> log_ratio;
      for (const size_t i : unmasked(json["mask"][s])) {
        log_ratio.push_back(json["old_logp"][s][i].get<double>() -
                            json["rollout_logp"][s][i].get<double>());
      }
      samples.push_back(correct_sample(config, log_ratio));
    }
    const bool is_normalized = json["params"].value("batch_normalize", false);
    const double factor = is_normalized ? mis_batch_factor(samples, config.level) : 1;
    for (size_t s = 0; s < samples.size(); ++s) {
      const std::vector<size_t> places = unmasked(json["mask"][s]);
      for (size_t t = 0; t < places.size(); ++t) {
        const std::string what = json["name"].get<std::string>() + " sample " + std::to_string(s) +
                                 " token " + std::to_string(places[t]);
        const TokenCorrection& token = samples[s][t];
        expect_near_double(token.weight * factor, json["weight"][s][places[t]], what);
        EXPECT_EQ(token.is_rejected || token.is_vetoed,
                  json["modified_mask"][s][places[t]].get<double>() == 0)
            << what;
        EXPECT_EQ(token.factor() == 0, token.is_rejected || token.is_vetoed) << what;
      }
    }
  }
}

TEST(Mis, VetoLeavesOutTheWholeSampleAndSaysSo) {
  CorrectionConfig config;
  config.kind = OffPolicyCorrection::kMis;
  const std::vector<double> fine = {0.1, -0.1}, broken = {0.1, std::log(0.9e-4)};
  for (const TokenCorrection& token : correct_sample(config, fine)) EXPECT_FALSE(token.is_vetoed);
  for (const TokenCorrection& token : correct_sample(config, broken)) EXPECT_TRUE(token.is_vetoed);
  config.veto = 0;
  for (const TokenCorrection& token : correct_sample(config, broken)) EXPECT_FALSE(token.is_vetoed);
}

TEST(Mis, RatiosStayFinite) {
  CorrectionConfig config;
  config.kind = OffPolicyCorrection::kMis;
  config.mode = MisMode::kMask;
  config.level = MisLevel::kSequence;
  for (const TokenCorrection& token : correct_sample(config, std::vector<double>(100, 50.0))) {
    expect_near_double(token.weight, std::exp(20.0), "clamped weight");
    EXPECT_TRUE(token.is_rejected);
  }
}

TEST(Correction, RefusesBoundsThatCross) {
  const auto refuses = [](auto change) {
    CorrectionConfig config;
    change(config);
    EXPECT_THROW(validate(config), Error);
  };
  refuses([](CorrectionConfig& c) { c.low = -1; });
  refuses([](CorrectionConfig& c) { c.high = 0; });
  refuses([](CorrectionConfig& c) { c.veto = 1; });
  refuses([](CorrectionConfig& c) { c.veto = std::nan(""); });
  refuses([](CorrectionConfig& c) { c.reject_low = 3; });
  refuses([](CorrectionConfig& c) { c.reject_high = std::nan(""); });
}

}  // namespace
}  // namespace nibble
