#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/checkpoint/hf_directory.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "tests/core/models/test_root.h"
#include "weight_sync/local_transport.h"
#include "weight_sync/plan.h"
#include "weight_sync/receiver.h"
#include "weight_sync/sender.h"

namespace nibble {

/// An INT4 checkpoint of tests/oracles, and other versions of it: what trainers publish in tests.
struct SyncModel {
  explicit SyncModel(const std::string& name)
      : directory(test_root() / "tests/oracles/models" / name / "int4_sym7"),
        spec(make_model_spec(parse_model_config(directory.config(), name))),
        source(load_weights(directory, spec.table)),
        manifest(make_manifest(spec.table, source->plan())) {}

  /// Version 1 is the checkpoint; every element of another version differs from it.
  std::unique_ptr<ResidentWeights> version(int64_t version) const {
    auto weights = std::make_unique<ResidentWeights>(spec.table, source->plan());
    const auto flip = static_cast<uint32_t>(version - 1);
    for (int64_t p = 0; p < spec.table.size(); ++p) {
      StoredParameter& out = weights->stored(p);
      out = source->stored(p);
      for (uint32_t& word : out.words) word ^= flip * 0x11111111u;
      for (uint16_t& scale : out.scale) scale = static_cast<uint16_t>(scale ^ flip);
      for (uint16_t& value : out.bf16) value = static_cast<uint16_t>(value ^ flip);
    }
    return weights;
  }

  HfDirectory directory;
  ModelSpec spec;
  std::unique_ptr<ResidentWeights> source;
  Manifest manifest;
};

/// Rank r's rows of `weights`, copied, as the trainer's packer makes them, on a device.
inline std::shared_ptr<const std::vector<StoredParameter>> row_shards(
    const SyncModel& model, const ResidentWeights& weights, int rank, const Mesh& mesh,
    DeviceKind device = DeviceKind::kCpu) {
  auto shards = std::make_shared<std::vector<StoredParameter>>();
  for (int64_t p = 0; p < model.spec.table.size(); ++p) {
    const StoredParameter& whole = weights.stored(p);
    const int64_t rows = model.spec.table.at(p).rows;
    const RowShard own = owned_rows(model.spec.table, p, mesh, rank);
    const auto cut = [&](const auto& values) {
      const auto row = static_cast<int64_t>(values.size()) / rows;
      return std::decay_t<decltype(values)>(
          std::span(values.begin() + own.begin * row, values.begin() + own.end * row));
    };
    const StoredParameter rows_here{cut(whole.bf16), cut(whole.words), cut(whole.scale)};
    shards->push_back(rows_here.to(device));
  }
  return shards;
}

/// The same as a sender takes them.
inline std::vector<LocalTensor> local_tensors(const SyncModel& model,
                                              const std::vector<StoredParameter>& shards, int rank,
                                              const Mesh& mesh) {
  return shard_tensors(model.manifest, shards,
                       owned_slices(model.manifest, model.spec.table, mesh, rank));
}

/// `version` with a few codes, scales and values changed, how many it says.
struct SmallChange {
  std::unique_ptr<ResidentWeights> weights;
  int64_t count = 0;
};
inline SmallChange small_change(const SyncModel& model, int64_t version) {
  SmallChange next{model.version(version)};
  for (int64_t p = 0; p < model.spec.table.size(); ++p) {
    StoredParameter& out = next.weights->stored(p);
    for (size_t i = 5; i < out.words.size(); i += 997, ++next.count) out.words[i] ^= 0x00500000u;
    for (size_t i = 3; i < out.scale.size(); i += 499, ++next.count) out.scale[i] ^= 1;
    for (size_t i = 1; i < out.bf16.size(); i += 301, ++next.count) out.bf16[i] ^= 3;
  }
  return next;
}

inline void publish_shard(const SyncModel& model, WeightSender& sender, int64_t version,
                          const ResidentWeights& weights, int rank, const Mesh& mesh,
                          DeviceKind device = DeviceKind::kCpu) {
  auto shards = row_shards(model, weights, rank, mesh, device);
  auto tensors = local_tensors(model, *shards, rank, mesh);
  sender.publish(version, std::move(tensors), std::move(shards));
}
inline void publish_shard(const SyncModel& model, WeightSender& sender, int64_t version, int rank,
                          const Mesh& mesh, DeviceKind device = DeviceKind::kCpu) {
  publish_shard(model, sender, version, *model.version(version), rank, mesh, device);
}

inline bool same_bytes(const SyncModel& model, const ResidentWeights& a, const ResidentWeights& b) {
  for (int64_t p = 0; p < model.spec.table.size(); ++p) {
    const StoredParameter x = a.stored(p).to(DeviceKind::kCpu);
    const StoredParameter y = b.stored(p).to(DeviceKind::kCpu);
    if (x.words != y.words || x.scale != y.scale || x.bf16 != y.bf16) return false;
  }
  return true;
}

constexpr TransferSizes kTestSizes = {16 << 10, 16 << 10};

/// A trainer of `num_senders` ranks and the plan for one worker that serves the whole model; on the
/// CPU, or on the device of `gpu` (borrowed).
struct SyncWorld {
  SyncWorld(const SyncModel& sync_model, const Mesh& senders_mesh,
            const kernels::WeightKernels* gpu = nullptr)
      : model(sync_model),
        mesh(senders_mesh),
        layout(trainer_layout(model.manifest, model.spec.table, mesh)),
        kernels(gpu != nullptr ? *gpu : cpu) {
    for (int rank = 0; rank < mesh.world; ++rank) {
      senders.push_back(std::make_unique<WeightSender>(rank, model.manifest, kernels));
    }
  }
  void publish(int64_t version) {
    for (int rank = 0; rank < layout.world(); ++rank) {
      publish_shard(model, *senders[static_cast<size_t>(rank)], version, rank, mesh);
    }
  }
  std::unique_ptr<WeightReceiver> receiver(ReceiverOptions options = {}) const {
    options.destination = destination;
    return std::make_unique<WeightReceiver>("job", model.spec.table, model.source->plan(),
                                            model.manifest, kernels, std::move(options));
  }
  SyncPlan plan(int64_t epoch = 1) const {
    const std::vector<std::string> members = {"trainer", "worker"};
    const auto whole = replica_slices(model.manifest);
    return make_plan({model.manifest, layout, destination.empty() ? whole : destination, epoch,
                      members, kTestSizes});
  }
  Transaction transaction(int64_t version, int64_t epoch = 1) const {
    return {"job", epoch, version, plan(epoch).digest};
  }

  const SyncModel& model;
  const Mesh mesh;
  Layout layout;
  std::vector<Slice> destination;  ///< of a rank of an engine of several; nothing: the model
  kernels::Serial serial;
  kernels::CpuWeightKernels cpu{serial};
  const kernels::WeightKernels& kernels;
  std::vector<std::unique_ptr<WeightSender>> senders;
};

/// MOVE from all senders to one receiver over `ends`; `receiver_end` replaces the receiver's if it
/// is not null. What a sender throws is dropped if the receiver throws, else rethrown.
inline std::vector<SenderReport> move_all(SyncWorld& world, WeightReceiver& receiver,
                                          const Transaction& transaction, LocalTransports& ends,
                                          Transport* receiver_end = nullptr) {
  const Deadline deadline = Deadline::after(std::chrono::seconds(10));
  const SyncPlan plan = world.plan(transaction.epoch);
  std::vector<std::future<SenderReport>> moves;
  for (size_t s = 0; s < world.senders.size(); ++s) {
    moves.push_back(std::async(std::launch::async, [&, s] {
      return world.senders[s]->move(transaction, plan, *ends.senders[s], deadline);
    }));
  }
  try {
    receiver.receive(transaction, receiver_end != nullptr ? *receiver_end : *ends.receiver,
                     deadline);
  } catch (const Error&) {
    ends.receiver->abort();  // as a dying group would
    throw;
  }
  std::vector<SenderReport> reports;
  reports.reserve(moves.size());
  for (auto& move : moves) reports.push_back(move.get());
  return reports;
}

/// The whole transaction, all steps.
inline ServedWeights sync_once(SyncWorld& world, WeightReceiver& receiver,
                               const Transaction& transaction) {
  receiver.reserve(transaction, world.plan(transaction.epoch));
  LocalTransports ends = make_local_transports(world.layout.world());
  const auto reports = move_all(world, receiver, transaction, ends);
  receiver.verify(transaction, reports);
  receiver.prepare(transaction);
  return receiver.commit(transaction);
}

}  // namespace nibble
