// Part `exact`: one sequence's log-probabilities from trainers that share a model in each way.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <thread>

#include "benchmarks/child_processes.h"
#include "benchmarks/figure.h"
#include "benchmarks/model_shapes.h"
#include "benchmarks/pair_mesh.h"
#include "benchmarks/pair_parts.h"
#include "core/base/fail.h"
#include "core/comm/reduce.h"
#include "core/ops/torch_parallel.h"
#include "tests/core/comm/free_port.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr int kMaxThreadsEach = 16;

struct ExactCase {
  std::string model;
  int64_t layers = 0;
  int64_t tokens = 0;  // a prime: no tile and no rank gets a whole share
};

std::vector<float> log_probs(const ExactCase& it, Member& member,
                             const std::filesystem::path& directory, const MeshSeat& seat) {
  TrainerConfig config = random_trainer(directory, 128);
  config.max_tokens_per_device = config.max_positions = it.tokens;
  Trainer trainer(config, *seat.host, *seat.groups, member.backend(Numerics::kExact));
  const int64_t vocab = shape_of(it.model).vocab;
  return trainer.log_probs(random_ids(vocab, it.tokens, 11));
}

int64_t num_differing(const std::vector<float>& a, const std::vector<float>& b) {
  NIBBLE_CHECK(a.size() == b.size(), "{} and {} log-probabilities", a.size(), b.size());
  int64_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    count += std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i]) ? 1 : 0;
  }
  return count;
}

void print_compared(const ExactCase& it, const std::string& what, int64_t differing) {
  Figure("exact")
      .set("model", it.model)
      .set("layers", it.layers)
      .set("weights", "int4")
      .set("compared_with_one_rank", what)
      .set("log_probs", it.tokens - 1)
      .set("differing", differing)
      .print();
  if (differing > 0) {
    fail(ErrorCode::kInternal, "{}, {}: {} log-probabilities are not one rank's", it.model, what,
         differing);
  }
}

void run_rank(const ExactCase& it, const PairOptions& options,
              const std::filesystem::path& directory, int port, int rank) {
  Member member(options.seat(port, rank));
  const auto both = member.join_host("exact", rank, 2);
  ops::set_num_threads(
      std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 2, 1, kMaxThreadsEach));
  // Each rank alone on its GPU, at the same time.
  const auto alone = log_probs(it, member, directory, MeshSeat(member, Mesh{1}, 0, "alone"));
  std::vector<float> everybodys(2 * alone.size());
  both->all_gather(std::as_bytes(std::span(alone)), std::as_writable_bytes(std::span(everybodys)))
      ->wait();
  const auto middle = everybodys.begin() + std::ssize(alone);
  const int64_t other_gpu = num_differing({everybodys.begin(), middle}, {middle, everybodys.end()});
  if (rank == 0) print_compared(it, "one rank on the other GPU", other_gpu);
  for (const Mesh& mesh : meshes_of_two(shape_of(it.model, it.layers))) {
    release_cached_memory(member.device());
    const MeshSeat seat(member, mesh, rank, it.model + ", " + mesh_name(mesh));
    const auto shared = log_probs(it, member, directory, seat);
    const int64_t differing = all_reduce_max(*both, num_differing(alone, shared));
    if (rank == 0) print_compared(it, mesh_name(mesh), differing);
  }
  start_together(*both);  // the store's host leaves last
}

std::vector<ExactCase> cases_of(const PairOptions& options) {
  if (options.is_dry_run()) return {{"tiny-dense", 3, 37}, {"tiny-moe", 2, 37}};
  return {{"qwen3-4b", std::min<int64_t>(4, options.dense_layers), 773},
          {"30b-a3b", std::min<int64_t>(1, options.moe_layers), 773}};
}

}  // namespace

bool run_exact(const PairOptions& options) {
  bool good = true;
  for (const ExactCase& it : cases_of(options)) {
    const auto directory = options.directory / ("exact-" + it.model);
    write_model_directory(directory, it.model, it.layers);
    const int port = free_port();
    const auto body = [&](int rank) { run_rank(it, options, directory, port, rank); };
    good = run_two_ranks(fmt::format("exact {}", it.model), body, 120s) && good;
  }
  return good;
}

}  // namespace nibble
