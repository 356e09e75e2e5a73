// Rate of publishing a 135M-shaped INT4 model over loopback, two trainer processes to one worker,
// beside a raw Gloo send of the same bytes by the same processes, alternating. Prints one JSON
// line.
//   build/cpu/bin/sync_bench [rounds] [bucket KiB]

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/base/fail.h"
#include "core/comm/process_group.h"
#include "core/models/decoder.h"
#include "weight_sync/group_transport.h"
#include "weight_sync/receiver.h"
#include "weight_sync/sender.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int kSenders = 2;
constexpr int kRawTag = 5;
constexpr int kControlTag = 7;

ModelConfig smollm_135m() {
  ModelConfig config;
  config.vocab = 49152;
  config.hidden = 576;
  config.intermediate = 1536;
  config.num_layers = 30;
  config.num_heads = 9;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  config.tied_embeddings = true;
  config.layer_is_moe.assign(30, false);
  return config;
}

struct Setup {
  Setup(int64_t bucket_bytes)
      : spec(make_model_spec(smollm_135m())),
        quantization(plan_quantization(spec.table, QuantTargets::kLinear, 4, 64)),
        manifest(make_manifest(spec.table, quantization)),
        layout(trainer_layout(manifest, spec.table, {kSenders})),
        plan(make_plan({manifest, layout, replica_slices(manifest), 1, members, {bucket_bytes}})) {}
  Transaction transaction(int64_t version) const { return {"bench", 1, version, plan.digest}; }

  const std::vector<std::string> members = {"trainer/0", "trainer/1", "rollout/0"};
  ModelSpec spec;
  QuantizationPlan quantization;
  Manifest manifest;
  Layout layout;
  SyncPlan plan;
  kernels::Serial serial;
  kernels::CpuWeightKernels kernels{serial};
};

// No way starts before everybody is ready for it.
void start_together(ProcessGroup& group) {
  std::byte local{};
  std::vector<std::byte> all(static_cast<size_t>(group.world()));
  group.all_gather(std::span(&local, 1), all)->wait();
}

void run_sender(const Setup& setup, ProcessGroup& group, int rounds) {
  const int rank = group.rank();
  auto shards = std::make_shared<std::vector<StoredParameter>>();
  uint32_t state = static_cast<uint32_t>(rank) + 1;
  const auto next = [&state] { return state = state * 1664525u + 1013904223u; };
  for (int64_t p = 0; p < setup.spec.table.size(); ++p) shards->emplace_back();
  for (int64_t t = 0; t < setup.manifest.size(); ++t) {
    const StoredTensor& tensor = setup.manifest.at(t);
    const RowShard rows = owned_rows(setup.spec.table, tensor.parameter, {kSenders}, rank);
    StoredParameter& out = (*shards)[static_cast<size_t>(tensor.parameter)];
    const auto count = static_cast<size_t>(rows.rows() * tensor.row_elements);
    if (tensor.kind == StoredKind::kWords) {
      out.words.resize(count);
      std::generate(out.words.begin(), out.words.end(), next);
    } else {
      auto& values = tensor.kind == StoredKind::kScale ? out.scale : out.bf16;
      values.resize(count);
      std::generate(values.begin(), values.end(),
                    [&] { return static_cast<uint16_t>(next() >> 16); });
    }
  }
  GroupTransport transport(group, kSenders);
  WeightSender sender(rank, setup.manifest, setup.kernels);
  std::vector<std::byte> raw;  // the same bytes, in one piece
  for (const LocalTensor& local :
       shard_tensors(setup.manifest, *shards, setup.layout.ranks[static_cast<size_t>(rank)])) {
    raw.insert(raw.end(), local.bytes.begin(), local.bytes.end());
  }
  for (int round = 0; round < rounds; ++round) {
    const int64_t version = round + 1;
    sender.publish(
        version,
        shard_tensors(setup.manifest, *shards, setup.layout.ranks[static_cast<size_t>(rank)]),
        shards);
    start_together(group);
    const SenderReport report =
        sender.move(setup.transaction(version), setup.plan, transport, Deadline::after(60s));
    std::vector<quant::ContentHash> hashes;
    for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
    group.send(std::as_bytes(std::span(hashes)), kSenders, kControlTag)->wait();
    sender.retire_before(version);
    start_together(group);
    const Edge& edge = *setup.plan.edge_of(rank);
    const auto tensors =
        shard_tensors(setup.manifest, *shards, setup.layout.ranks[static_cast<size_t>(rank)]);
    std::vector<std::span<const std::byte>> pieces;
    for (const PlannedSlice& planned : edge.slices) {
      pieces.push_back(tensors[static_cast<size_t>(planned.slice.tensor)].bytes);
    }
    transport.send(
        pieces, setup.plan.sizes, [](const Segment&) {}, Deadline::after(60s));
    start_together(group);
    group.send(raw, kSenders, kRawTag)->wait();
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// MOVE with hashes on both ends, VERIFY and PREPARE.
void move_and_verify(const Setup& setup, ProcessGroup& group, Transport& transport,
                     WeightReceiver& receiver, const Transaction& transaction) {
  receiver.receive(transaction, transport, Deadline::after(60s));
  std::vector<SenderReport> reports;
  for (const Edge& edge : setup.plan.edges) {
    std::vector<quant::ContentHash> hashes(edge.slices.size());
    group.receive(std::as_writable_bytes(std::span(hashes)), edge.sender, kControlTag)->wait();
    reports.push_back({edge.sender, transaction, {}});
    for (size_t i = 0; i < hashes.size(); ++i) {
      reports.back().slices.push_back({edge.slices[i].slice, hashes[i]});
    }
  }
  receiver.verify(transaction, reports);
  receiver.prepare(transaction);
}

// The transport alone, into memory laid out as a worker's.
void move_only(const Setup& setup, Transport& transport, ResidentWeights& weights) {
  std::vector<IncomingEdge> edges;
  for (const Edge& edge : setup.plan.edges) {
    edges.push_back({edge.sender, {}});
    for (const PlannedSlice& planned : edge.slices) {
      const StoredTensor& tensor = setup.manifest.at(planned.slice.tensor);
      edges.back().pieces.push_back(stored_bytes(weights.stored(tensor.parameter), tensor)
                                        .subspan(static_cast<size_t>(planned.byte_begin),
                                                 static_cast<size_t>(planned.bytes())));
    }
  }
  transport.receive(
      edges, setup.plan.sizes, [](size_t, const Segment&) {}, Deadline::after(60s));
}

void raw_receive(const Setup& setup, ProcessGroup& group,
                 std::vector<std::vector<std::byte>>& memory) {
  std::vector<std::unique_ptr<PendingTransfer>> pending;
  for (size_t e = 0; e < memory.size(); ++e) {
    pending.push_back(group.receive(memory[e], setup.plan.edges[e].sender, kRawTag));
  }
  for (const auto& transfer : pending) transfer->wait();
}

void run_worker(const Setup& setup, ProcessGroup& group, int rounds) {
  WeightReceiver receiver("bench", setup.spec.table, setup.quantization, setup.manifest,
                          setup.kernels);
  GroupTransport transport(group, kSenders);
  ResidentWeights memory(setup.spec.table, setup.quantization);
  std::vector<std::vector<std::byte>> raw;
  for (const Edge& edge : setup.plan.edges) raw.emplace_back(static_cast<size_t>(edge.bytes));
  std::vector<double> whole_ms, wire_ms, raw_ms, commit_us, hash_ms;
  for (int round = 0; round < rounds; ++round) {
    const Transaction transaction = setup.transaction(round + 1);
    receiver.reserve(transaction, setup.plan);
    Stopwatch watch;
    const auto timed = [&](auto&& body) {
      start_together(group);
      watch.restart_ms();
      body();
      return watch.restart_ms();
    };
    // Throws unless every hash agrees, so that no rate of wrong bytes is ever printed.
    whole_ms.push_back(
        timed([&] { move_and_verify(setup, group, transport, receiver, transaction); }));
    const ServedWeights served = receiver.commit(transaction);
    commit_us.push_back(1000.0 * watch.restart_ms());
    wire_ms.push_back(timed([&] { move_only(setup, transport, memory); }));
    raw_ms.push_back(timed([&] { raw_receive(setup, group, raw); }));
    const auto hashes = content_hashes(setup.manifest, memory, setup.kernels);
    hash_ms.push_back(watch.restart_ms());
    if (hashes != content_hashes(setup.manifest, *served.weights, setup.kernels)) {
      fail(ErrorCode::kDataLoss, "round {}: the wire-only transfer differs", round);
    }
  }
  const double bytes = static_cast<double>(setup.plan.bytes);
  const auto rate = [bytes](double ms) { return bytes / ms / 1e6; };
  fmt::print(
      "{{\"bench\":\"sync\",\"model\":\"135M\",\"group\":64,\"senders\":{},\"wire_bytes\":{},"
      "\"bucket_kib\":{},\"n\":{},\"wire_ms\":{:.2f},\"wire_GB/s\":{:.2f},\"raw_gloo_ms\":{:.2f},"
      "\"raw_GB/s\":{:.2f},\"wire_of_raw\":{:.3f},\"hash_one_side_ms\":{:.2f},"
      "\"move_verify_ms\":{:.2f},\"commit_us\":{:.1f}}}\n",
      kSenders, setup.plan.bytes, setup.plan.sizes.bucket_bytes >> 10, whole_ms.size(),
      median(wire_ms), rate(median(wire_ms)), median(raw_ms), rate(median(raw_ms)),
      median(raw_ms) / median(wire_ms), median(hash_ms), median(whole_ms), median(commit_us));
}

void run_rank(const Setup& setup, int port, int rank, int rounds) {
  const auto group = join_gloo_group({"127.0.0.1", port, "bench", 60s}, rank, kSenders + 1);
  if (rank < kSenders) {
    run_sender(setup, *group, rounds);
  } else {
    run_worker(setup, *group, rounds);
  }
}

// The worker's process hosts the store and tells its children the port.
int run(int rounds, int64_t bucket_bytes) {
  const Setup setup(bucket_bytes);
  int ports[2];
  if (pipe(ports) != 0) fail(ErrorCode::kResourceExhausted, "no pipe");
  for (int rank = 0; rank < kSenders; ++rank) {
    if (fork() != 0) continue;
    int port = 0;
    if (read(ports[0], &port, sizeof port) != sizeof port) _exit(1);
    run_rank(setup, port, rank, rounds);
    _exit(0);
  }
  const RendezvousServer server;
  const int port = server.port();
  for (int rank = 0; rank < kSenders; ++rank) {
    if (write(ports[1], &port, sizeof port) != sizeof port) return 1;
  }
  run_rank(setup, port, kSenders, rounds);
  for (int rank = 0; rank < kSenders; ++rank) {
    int status = 0;
    if (wait(&status) < 0 || status != 0) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(3, atoi(argv[1])) : 20;
  const int64_t bucket_kib = argc > 2 ? atoll(argv[2]) : nibble::TransferSizes{}.bucket_bytes >> 10;
  try {
    return nibble::run(rounds, bucket_kib << 10);
  } catch (const nibble::Error& error) {
    fprintf(stderr, "sync_bench: %s\n", error.what());
    return nibble::exit_code(error.code());
  }
}
