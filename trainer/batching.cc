#include "trainer/batching.h"

#include <algorithm>
#include <numeric>

#include "core/base/fail.h"

namespace nibble {
namespace {

struct Piece {
  const SampleGroup* group;
  std::vector<size_t> samples;  // positions in group->samples
  const std::vector<double>* advantages;
  const std::vector<uint8_t>* is_masked;
};

int64_t sample_tokens(const Sample& sample) {
  return std::max<int64_t>(0, static_cast<int64_t>(sample.response.size()) - 1);
}

void append(const std::vector<uint8_t>& bytes, std::vector<uint8_t>& out) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

MicroBatch build(const std::vector<Piece>& pieces) {
  MicroBatch batch;
  std::vector<SequenceGroup> sequences;
  batch.sample_begin.push_back(0);
  for (const Piece& piece : pieces) {
    SequenceGroup sequence{piece.group->prompt, {}};
    batch.route_shape = piece.group->route_shape;
    append(piece.group->prompt_routes, batch.routes);
    for (const size_t s : piece.samples) {
      const Sample& sample = piece.group->samples[s];
      NIBBLE_CHECK(sample.log_probs.size() == sample.response.size(),
                   "sample {} of prompt {} has {} tokens and {} log-probabilities",
                   sample.sample_index, piece.group->prompt_id, sample.response.size(),
                   sample.log_probs.size());
      sequence.responses.push_back(sample.response);
      append(sample.routes, batch.routes);
      batch.rollout_log_prob.insert(batch.rollout_log_prob.end(), sample.log_probs.begin(),
                                    sample.log_probs.end());
      const auto tokens = sample.response.size();
      batch.advantage.insert(batch.advantage.end(), tokens,
                             static_cast<float>((*piece.advantages)[s]));
      const bool is_masked = !piece.is_masked->empty() && (*piece.is_masked)[s] != 0;
      const uint8_t counts = is_masked ? 0 : 1;
      batch.mask.insert(batch.mask.end(), tokens, counts);
      batch.sample_begin.push_back(static_cast<int64_t>(batch.mask.size()));
      batch.samples.push_back({piece.group->prompt_id, sample.sample_index});
    }
    sequences.push_back(std::move(sequence));
  }
  batch.packed = pack_groups(sequences);
  return batch;
}

}  // namespace

int64_t group_tokens(const SampleGroup& group) {
  int64_t tokens = static_cast<int64_t>(group.prompt.size());
  for (const Sample& sample : group.samples) tokens += sample_tokens(sample);
  return tokens;
}

std::vector<MicroBatch> make_micro_batches(std::span<const ScoredGroup> groups,
                                           int64_t max_tokens) {
  std::vector<MicroBatch> batches;
  std::vector<Piece> pieces;
  int64_t tokens = 0;
  const auto flush = [&] {
    if (!pieces.empty()) batches.push_back(build(pieces));
    pieces.clear();
    tokens = 0;
  };
  for (const ScoredGroup& scored : groups) {
    const SampleGroup& group = *scored.group;
    const auto prompt = static_cast<int64_t>(group.prompt.size());
    if (tokens > 0 && tokens + group_tokens(group) > max_tokens) flush();
    pieces.push_back({&group, {}, &scored.advantages, &scored.is_masked});
    tokens += prompt;
    for (size_t s = 0; s < group.samples.size(); ++s) {
      const int64_t extra = sample_tokens(group.samples[s]);
      if (tokens + extra > max_tokens && !pieces.back().samples.empty()) {
        flush();
        pieces.push_back({&group, {}, &scored.advantages, &scored.is_masked});
        tokens = prompt;
      }
      pieces.back().samples.push_back(s);
      tokens += extra;
    }
  }
  flush();
  return batches;
}

MicroBatch idle_micro_batch() {
  MicroBatch batch;
  const SequenceGroup sequence{{0}, {{0}}};
  batch.packed = pack_groups(std::span(&sequence, 1));
  batch.rollout_log_prob = {0.0f};
  batch.advantage = {0.0f};
  batch.mask = {0};
  batch.sample_begin = {0, 1};
  batch.is_idle = true;
  return batch;
}

std::vector<std::vector<int64_t>> balance_groups(std::span<const int64_t> tokens, int world) {
  std::vector<int64_t> order(tokens.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return tokens[static_cast<size_t>(a)] > tokens[static_cast<size_t>(b)];
  });
  std::vector<std::vector<int64_t>> shares(static_cast<size_t>(world));
  std::vector<int64_t> load(static_cast<size_t>(world), 0);
  for (const int64_t group : order) {
    const auto rank =
        static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    shares[rank].push_back(group);
    load[rank] += tokens[static_cast<size_t>(group)];
  }
  for (auto& share : shares) std::sort(share.begin(), share.end());
  return shares;
}

}  // namespace nibble
