#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/comm/process_group.h"
#include "core/spec/mesh.h"

namespace nibble {

/// Joins a group of this rank's kind of memory. Names differ between groups that meet at one store.
using JoinGroup =
    std::function<std::unique_ptr<ProcessGroup>(const std::string& name, int rank, int world)>;

/// The groups that one trainer rank belongs to. All move bytes of the device that computes.
class MeshGroups {
 public:
  /// Of ranks that share nothing but data: `all` (borrowed) is everybody.
  explicit MeshGroups(ProcessGroup& all);
  /// Joins what `mesh` needs beside `all`, which has `mesh.world` ranks. Collective.
  MeshGroups(const Mesh& mesh, ProcessGroup& all, const JoinGroup& join);

  const Mesh& mesh() const { return mesh_; }
  int rank() const { return all_.rank(); }
  /// Of the ranks that work on the same tokens, the one whose figures count.
  bool counts_figures() const { return rank() % (mesh_.tensor * mesh_.context) == 0; }
  /// The ranks that multiply with the same rows as this one, each the owner of a part.
  ProcessGroup& owners(Sharing sharing) const;
  /// Throws what became of a transfer of any of them (ProcessGroup::check).
  void check() const;
  /// The ranks that work on the same tokens; null if there is one.
  ProcessGroup* tensor() const { return tensor_.get(); }
  /// The ranks that share the tokens of the same samples; null if there is one.
  ProcessGroup* context() const { return context_.get(); }
  /// The ranks that hold a layer's experts together; null if each holds all.
  ProcessGroup* expert() const { return expert_.get(); }

 private:
  const Mesh mesh_;
  ProcessGroup& all_;
  std::unique_ptr<ProcessGroup> tensor_;
  std::unique_ptr<ProcessGroup> context_;
  std::unique_ptr<ProcessGroup> tensor_owners_;
  std::unique_ptr<ProcessGroup> expert_;
  std::unique_ptr<ProcessGroup> expert_owners_;
};

}  // namespace nibble
