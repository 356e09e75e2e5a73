#include "weight_sync/plan.h"

#include <algorithm>
#include <tuple>

#include "core/base/fail.h"
#include "weight_sync/bucket_plan.h"

namespace nibble {
namespace {

struct Holding {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int rank = 0;
};

// Rows that the same senders hold.
struct Run {
  Slice slice;
  std::vector<int> holders;  // sorted
};

struct Assigned {
  Slice slice;
  int sender = 0;
};

auto by_place(const Slice& s) { return std::tuple(s.tensor, s.row_begin, s.row_end); }

void check_slice(const Manifest& manifest, const Slice& slice, const std::string& whose) {
  if (slice.tensor < 0 || slice.tensor >= manifest.size()) {
    fail(ErrorCode::kInvalidArgument, "{} lists tensor {}, but the model has {}", whose,
         slice.tensor, manifest.size());
  }
  const StoredTensor& tensor = manifest.at(slice.tensor);
  if (slice.row_begin < 0 || slice.row_begin >= slice.row_end || slice.row_end > tensor.rows) {
    fail(ErrorCode::kInvalidArgument, "{} lists rows [{}, {}) of tensor '{}', which has {}", whose,
         slice.row_begin, slice.row_end, tensor.name, tensor.rows);
  }
}

std::vector<Slice> sorted_receiver(const PlanInputs& inputs) {
  std::vector<Slice> slices(inputs.receiver.begin(), inputs.receiver.end());
  for (const Slice& slice : slices) check_slice(inputs.manifest, slice, "the receiver");
  std::sort(slices.begin(), slices.end(),
            [](const Slice& a, const Slice& b) { return by_place(a) < by_place(b); });
  for (size_t i = 1; i < slices.size(); ++i) {
    const Slice& a = slices[i - 1];
    const Slice& b = slices[i];
    if (a.tensor == b.tensor && b.row_begin < a.row_end) {
      fail(ErrorCode::kInvalidArgument,
           "the receiver lists rows [{}, {}) of tensor '{}' twice; each byte is written once",
           b.row_begin, std::min(a.row_end, b.row_end), inputs.manifest.at(a.tensor).name);
    }
  }
  return slices;
}

std::vector<std::vector<Holding>> holdings_by_tensor(const PlanInputs& inputs) {
  std::vector<std::vector<Holding>> holdings(inputs.manifest.tensors.size());
  for (int rank = 0; rank < inputs.senders.world(); ++rank) {
    for (const Slice& slice : inputs.senders.ranks[static_cast<size_t>(rank)]) {
      check_slice(inputs.manifest, slice, fmt::format("sender {}", rank));
      holdings[static_cast<size_t>(slice.tensor)].push_back({slice.row_begin, slice.row_end, rank});
    }
  }
  return holdings;
}

// Cuts a receiver slice where the set of its holders changes.
void append_runs(const Manifest& manifest, const Slice& slice, const std::vector<Holding>& holdings,
                 std::vector<Run>& runs) {
  std::vector<int64_t> cuts = {slice.row_begin, slice.row_end};
  for (const Holding& held : holdings) {
    for (const int64_t row : {held.row_begin, held.row_end}) {
      if (row > slice.row_begin && row < slice.row_end) cuts.push_back(row);
    }
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    Run run{{slice.tensor, cuts[i], cuts[i + 1]}, {}};
    for (const Holding& held : holdings) {
      if (held.row_begin <= cuts[i] && cuts[i + 1] <= held.row_end) {
        run.holders.push_back(held.rank);
      }
    }
    if (run.holders.empty()) {
      fail(ErrorCode::kInvalidArgument, "no sender holds rows [{}, {}) of tensor '{}'", cuts[i],
           cuts[i + 1], manifest.at(slice.tensor).name);
    }
    std::sort(run.holders.begin(), run.holders.end());
    run.holders.erase(std::unique(run.holders.begin(), run.holders.end()), run.holders.end());
    runs.push_back(std::move(run));
  }
}

// Rows with one holder first: they fix a load that the others level out, in chunks of 1/32 of a
// fair share, so that one huge tensor does not spoil the balance.
std::vector<Assigned> assign(const Manifest& manifest, const std::vector<Run>& runs, int world) {
  constexpr int64_t kChunksPerSender = 32;
  std::vector<int64_t> load(static_cast<size_t>(world), 0);
  std::vector<Assigned> assigned;
  int64_t total = 0;
  for (const Run& run : runs) {
    const int64_t bytes = run.slice.rows() * manifest.at(run.slice.tensor).row_bytes();
    total += bytes;
    if (run.holders.size() > 1) continue;
    load[static_cast<size_t>(run.holders[0])] += bytes;
    assigned.push_back({run.slice, run.holders[0]});
  }
  const int64_t chunk_bytes = total / (kChunksPerSender * world) + 1;
  for (const Run& run : runs) {
    if (run.holders.size() == 1) continue;
    const int64_t row_bytes = manifest.at(run.slice.tensor).row_bytes();
    const int64_t chunk_rows = std::max<int64_t>(1, chunk_bytes / row_bytes);
    for (int64_t row = run.slice.row_begin; row < run.slice.row_end; row += chunk_rows) {
      const int64_t end = std::min(row + chunk_rows, run.slice.row_end);
      const int sender =
          *std::min_element(run.holders.begin(), run.holders.end(), [&load](int a, int b) {
            return load[static_cast<size_t>(a)] < load[static_cast<size_t>(b)];
          });
      load[static_cast<size_t>(sender)] += (end - row) * row_bytes;
      assigned.push_back({{run.slice.tensor, row, end}, sender});
    }
  }
  std::sort(assigned.begin(), assigned.end(), [](const Assigned& a, const Assigned& b) {
    return by_place(a.slice) < by_place(b.slice);
  });
  return assigned;
}

std::vector<Edge> make_edges(const Manifest& manifest, const std::vector<Assigned>& assigned,
                             int world) {
  std::vector<Edge> edges(static_cast<size_t>(world));
  for (int rank = 0; rank < world; ++rank) edges[static_cast<size_t>(rank)].sender = rank;
  for (const Assigned& part : assigned) {
    Edge& edge = edges[static_cast<size_t>(part.sender)];
    const int64_t row_bytes = manifest.at(part.slice.tensor).row_bytes();
    edge.bytes += part.slice.rows() * row_bytes;
    if (!edge.slices.empty() && edge.slices.back().slice.tensor == part.slice.tensor &&
        edge.slices.back().slice.row_end == part.slice.row_begin) {
      edge.slices.back().slice.row_end = part.slice.row_end;
      edge.slices.back().byte_end = part.slice.row_end * row_bytes;
      continue;
    }
    edge.slices.push_back(
        {part.slice, part.slice.row_begin * row_bytes, part.slice.row_end * row_bytes});
  }
  std::erase_if(edges, [](const Edge& edge) { return edge.slices.empty(); });
  return edges;
}

Digest plan_digest(const PlanInputs& inputs, const SyncPlan& plan) {
  DigestBuilder builder;
  builder.add(inputs.manifest.digest.low);
  builder.add(inputs.manifest.digest.high);
  builder.add(inputs.epoch);
  builder.add(static_cast<uint64_t>(inputs.membership.size()));
  for (const std::string& member : inputs.membership) builder.add(std::string_view(member));
  builder.add(plan.sizes.bucket_bytes);
  builder.add(
      plan.sizes.direct_bytes);  // Gloo ends a process whose peer sends other sizes than it expects
  builder.add(static_cast<uint64_t>(plan.edges.size()));
  for (const Edge& edge : plan.edges) {
    builder.add(static_cast<int64_t>(edge.sender));
    builder.add(static_cast<uint64_t>(edge.slices.size()));
    for (const PlannedSlice& planned : edge.slices) {
      builder.add(planned.slice.tensor);
      builder.add(planned.byte_begin);
      builder.add(planned.byte_end);
    }
  }
  return builder.digest();
}

std::string rows_text(const Manifest& manifest, int64_t tensor, int64_t begin, int64_t end) {
  return fmt::format("rows [{}, {}) of tensor '{}'", begin, end, manifest.at(tensor).name);
}

// +1 where a written range begins, -1 where it ends; the same of ranges that are wanted.
struct CoverageEvent {
  int64_t row = 0;
  int written = 0, wanted = 0;
};

// Balanced at every row, and never two written ranges at once.
std::optional<std::string> coverage_problem_of(const Manifest& manifest, int64_t tensor,
                                               std::span<CoverageEvent> events) {
  std::sort(events.begin(), events.end(),
            [](const CoverageEvent& a, const CoverageEvent& b) { return a.row < b.row; });
  int depth = 0;
  int wanted = 0;
  for (size_t i = 0; i < events.size(); ++i) {
    depth += events[i].written;
    wanted += events[i].wanted;
    if (i + 1 == events.size() || events[i + 1].row == events[i].row || depth == wanted) continue;
    const std::string rows = rows_text(manifest, tensor, events[i].row, events[i + 1].row);
    if (wanted == 0) return rows + " were written, but belong to another worker";
    if (depth == 0) return rows + " were not written";
    return fmt::format("{} were written {} times", rows, depth);
  }
  return std::nullopt;
}

}  // namespace

const Edge* SyncPlan::edge_of(int sender) const {
  for (const Edge& edge : edges) {
    if (edge.sender == sender) return &edge;
  }
  return nullptr;
}

SyncPlan make_plan(const PlanInputs& inputs) {
  if (inputs.sizes.bucket_bytes < 4 || inputs.sizes.bucket_bytes % 4 != 0) {
    fail(ErrorCode::kInvalidArgument,
         "weight_sync.bucket_bytes is {}; it must be a positive multiple of 4",
         inputs.sizes.bucket_bytes);
  }
  const auto holdings = holdings_by_tensor(inputs);
  std::vector<Run> runs;
  for (const Slice& slice : sorted_receiver(inputs)) {
    append_runs(inputs.manifest, slice, holdings[static_cast<size_t>(slice.tensor)], runs);
  }
  SyncPlan plan;
  plan.sizes = inputs.sizes;
  plan.manifest_digest = inputs.manifest.digest;
  plan.edges = make_edges(inputs.manifest, assign(inputs.manifest, runs, inputs.senders.world()),
                          inputs.senders.world());
  std::vector<Slice> written;
  for (const Edge& edge : plan.edges) {
    plan.bytes += edge.bytes;
    for (const PlannedSlice& planned : edge.slices) written.push_back(planned.slice);
  }
  const auto problem = coverage_problem(inputs.manifest, written, inputs.receiver);
  NIBBLE_CHECK(!problem, "{}", *problem);
  plan.digest = plan_digest(inputs, plan);
  return plan;
}

std::optional<std::string> coverage_problem(const Manifest& manifest,
                                            std::span<const Slice> written,
                                            std::span<const Slice> destination) {
  // The events of one tensor lie together: a model has tens of thousands of tensors and a few
  // events in each, which one sort over all would be slow at.
  std::vector<size_t> begin(manifest.tensors.size() + 1, 0);
  for (const auto slices : {written, destination}) {
    for (const Slice& s : slices) {
      NIBBLE_CHECK(s.tensor >= 0 && s.tensor < manifest.size(), "a slice of tensor {}", s.tensor);
      begin[static_cast<size_t>(s.tensor) + 1] += 2;
    }
  }
  for (size_t t = 1; t < begin.size(); ++t) begin[t] += begin[t - 1];
  std::vector<CoverageEvent> events(begin.back());
  std::vector<size_t> next(begin.begin(), begin.end() - 1);
  const auto add = [&](const Slice& s, int is_written, int is_wanted) {
    size_t& at = next[static_cast<size_t>(s.tensor)];
    events[at++] = {s.row_begin, is_written, is_wanted};
    events[at++] = {s.row_end, -is_written, -is_wanted};
  };
  for (const Slice& s : written) add(s, 1, 0);
  for (const Slice& s : destination) add(s, 0, 1);
  for (size_t t = 0; t + 1 < begin.size(); ++t) {
    const auto of_tensor = std::span(events).subspan(begin[t], begin[t + 1] - begin[t]);
    if (auto problem = coverage_problem_of(manifest, static_cast<int64_t>(t), of_tensor)) {
      return problem;
    }
  }
  return std::nullopt;
}

}  // namespace nibble
