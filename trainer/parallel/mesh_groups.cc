#include "trainer/parallel/mesh_groups.h"

#include "core/base/fail.h"

namespace nibble {

MeshGroups::MeshGroups(ProcessGroup& all) : mesh_{all.world()}, all_(all) {}

MeshGroups::MeshGroups(const Mesh& mesh, ProcessGroup& all, const JoinGroup& join)
    : mesh_(mesh), all_(all) {
  NIBBLE_CHECK(mesh.world == all.world(), "a mesh of {} in a group of {}", mesh.world, all.world());
  const int rank = all.rank();
  // `block` numbers the groups of a kind. Every rank joins in this order, so nobody waits in a
  // ring.
  const auto make = [&](const char* kind, int block, int place, int size) {
    const std::string name = fmt::format("{}/{}/{}", all.name(), kind, block);
    return size == 1 ? solo_group(name) : join(name, place, size);
  };
  const auto owners = [&](const char* kind, Sharing sharing, int block) {
    const Owners own = owners_of(sharing, mesh, rank);
    return make(kind, block, own.place, own.count);
  };
  if (mesh.tensor > 1) {
    tensor_ = make("tensor", rank / mesh.tensor, mesh.tensor_rank(rank), mesh.tensor);
    tensor_owners_ = owners("tensor-owners", Sharing::kTensor, mesh.tensor_rank(rank));
  }
  if (mesh.context > 1) {
    const int block = mesh.data_rank(rank) * mesh.tensor + mesh.tensor_rank(rank);
    context_ = make("context", block, mesh.context_rank(rank), mesh.context);
  }
  if (mesh.expert > 1) {
    expert_ = make("expert", rank / mesh.expert, mesh.expert_rank(rank), mesh.expert);
    expert_owners_ = owners("expert-owners", Sharing::kExpert, mesh.expert_rank(rank));
  }
}

void MeshGroups::check() const {
  for (const ProcessGroup* group : {&all_, tensor_.get(), tensor_owners_.get(), context_.get(),
                                    expert_.get(), expert_owners_.get()}) {
    if (group != nullptr) group->check();
  }
}

ProcessGroup& MeshGroups::owners(Sharing sharing) const {
  switch (sharing) {
    case Sharing::kTensor:
      return *tensor_owners_;
    case Sharing::kExpert:
      return *expert_owners_;
    case Sharing::kAll:
      break;
  }
  return all_;
}

}  // namespace nibble
