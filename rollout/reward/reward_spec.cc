#include "rollout/reward/reward_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/base/fail.h"
#include "core/base/json.h"
#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

double read_weight(std::string_view text, std::string_view part) {
  double weight = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), weight);
  if (read.ec != std::errc() || read.ptr != text.data() + text.size() || !std::isfinite(weight)) {
    fail(ErrorCode::kInvalidArgument, "reward '{}': '{}' is no weight", part, text);
  }
  return weight;
}

}  // namespace

std::vector<RewardPart> parse_reward_parts(std::string_view text) {
  std::vector<RewardPart> parts;
  while (true) {
    const size_t comma = text.find(',');
    const std::string_view part = trim(text.substr(0, comma));
    const size_t equals = part.find('=');
    RewardPart next{std::string(trim(part.substr(0, equals)))};
    if (next.type.empty()) {
      fail(ErrorCode::kInvalidArgument,
           "a reward has no type; write TYPE, or TYPE=WEIGHT,TYPE=WEIGHT");
    }
    if (equals != std::string_view::npos) {
      next.weight = read_weight(trim(part.substr(equals + 1)), part);
    }
    parts.push_back(std::move(next));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

std::string reward_parts_text(const std::vector<RewardPart>& parts) {
  if (parts.size() == 1 && parts[0].weight == 1.0) return parts[0].type;
  std::string text;
  for (const RewardPart& part : parts) {
    if (!text.empty()) text += ",";
    text += fmt::format("{}={}", part.type, part.weight);
  }
  return text;
}

bool has_remote(const std::vector<RewardPart>& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [](const RewardPart& part) { return part.type == kRemoteReward; });
}

std::string reward_argument(const RewardSpec& spec) {
  Json parts = Json::array();
  for (const RewardPart& part : spec.parts) {
    parts.push_back({{"type", part.type}, {"weight", part.weight}});
  }
  return Json{{"parts", parts},
              {"url", spec.url},
              {"remote_timeout_ms", spec.remote_timeout_ms},
              {"remote_attempts", spec.remote_attempts}}
      .dump();
}

RewardSpec parse_reward_argument(const std::string& argument) {
  RewardSpec spec;
  if (!argument.starts_with('{')) {
    spec.parts = parse_reward_parts(argument);
    return spec;
  }
  const Json json = parse_json(argument, "nibble-reward");
  try {
    for (const Json& part : json.at("parts")) {
      spec.parts.push_back({part.at("type").get<std::string>(), part.at("weight").get<double>()});
    }
    json.at("url").get_to(spec.url);
    json.at("remote_timeout_ms").get_to(spec.remote_timeout_ms);
    json.at("remote_attempts").get_to(spec.remote_attempts);
  } catch (const Json::exception& error) {
    fail(ErrorCode::kInvalidArgument, "nibble-reward: {}", error.what());
  }
  return spec;
}

}  // namespace nibble
