#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "core/base/fail.h"
#include "core/comm_cuda/nccl_group.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "core/ops/cpu_backend.h"
#include "tests/core/comm/free_port.h"
#include "tests/core/comm/run_ranks.h"
#include "tests/trainer/tiny_trainer.h"

// Trainer ranks as processes: on the CPU over Gloo, and on one GPU over NCCL.

namespace nibble {

enum class Wire { kGloo, kNccl };

inline void require(bool condition, const char* what) {
  if (!condition) fail(ErrorCode::kInternal, "{}", what);
}

// In a child: CUDA must not start in the process that forks.
inline bool has_gpu() {
  static const bool has = run_ranks(1, std::chrono::seconds(60), [](int) {
                            require(ops::num_cuda_devices() > 0, "no GPU");
                          }) == 1;
  return has;
}

/// One rank's groups and device.
struct MeshMember {
  MeshMember(Wire wire, const Mesh& mesh, int port, int rank) {
    if (wire == Wire::kNccl) {
      share_gpu_between_nccl_ranks(rank);
      ops::use_cuda_device(0);
      backend = ops::make_cuda_backend(Numerics::kExact);
    }
    if (rank == 0) server = std::make_unique<RendezvousServer>(port);
    const auto meet = [port](const std::string& name) {
      return Rendezvous{"127.0.0.1", port, name, std::chrono::seconds(30)};
    };
    const auto join = [&](const std::string& name, int place, int size) {
      if (size == 1) return solo_group(name);
      return backend ? join_nccl_group(meet(name), place, size)
                     : join_gloo_group(meet(name), place, size);
    };
    host = mesh.world == 1 ? solo_group("host") : join_gloo_group(meet("host"), rank, mesh.world);
    all = join("trainers", rank, mesh.world);
    groups = std::make_unique<MeshGroups>(mesh, *all, join);
  }
  const ops::Backend& device() const { return backend ? *backend : ops::cpu_backend(); }
  Trainer trainer(TrainerConfig config) const {
    return {std::move(config), *host, *groups, device()};
  }
  /// This rank's share of a step's groups.
  std::vector<SampleGroup> share(const std::vector<SampleGroup>& samples) const {
    const Mesh& mesh = groups->mesh();
    std::vector<int64_t> tokens;
    tokens.reserve(samples.size());
    for (const SampleGroup& group : samples) tokens.push_back(group_tokens(group));
    const auto shares = balance_groups(tokens, mesh.num_data());
    std::vector<SampleGroup> mine;
    for (const int64_t g : shares[static_cast<size_t>(mesh.data_rank(all->rank()))]) {
      mine.push_back(samples[static_cast<size_t>(g)]);
    }
    return mine;
  }
  /// The store's host leaves last. Collective.
  void leave() const {
    std::vector<std::byte> done(static_cast<size_t>(host->world()));
    host->all_gather(std::span(done).first(1), done)->wait();
  }

  std::unique_ptr<RendezvousServer> server;
  std::unique_ptr<const ops::Backend> backend;  // of the GPU
  std::unique_ptr<ProcessGroup> host, all;
  std::unique_ptr<MeshGroups> groups;
};

/// Runs body(member) on the ranks of a mesh, and returns how many ended well.
inline int run_members(Wire wire, const Mesh& mesh,
                       const std::function<void(const MeshMember&)>& body) {
  const int port = free_port();
  return run_ranks(mesh.world, std::chrono::seconds(100), [&](int rank) {
    const MeshMember member(wire, mesh, port, rank);
    body(member);
    member.leave();
  });
}

}  // namespace nibble
