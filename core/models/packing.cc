#include "core/models/packing.h"

#include "core/base/fail.h"

namespace nibble {
namespace {

class Packer {
 public:
  // Appends tokens whose keys are `before` (row numbers) followed by themselves; returns all rows.
  std::vector<int32_t> append(std::span<const int32_t> ids, const std::vector<int32_t>& before) {
    std::vector<int32_t> rows = before;
    const auto table = static_cast<int64_t>(index_->rows.size());
    for (const int32_t id : ids) {
      index_->position.push_back(static_cast<int32_t>(rows.size()));
      rows.push_back(static_cast<int32_t>(batch_.tokens.size()));
      batch_.tokens.push_back(id);
      index_->first.push_back(table);
      index_->count.push_back(static_cast<int32_t>(rows.size()));
    }
    index_->rows.insert(index_->rows.end(), rows.begin(), rows.end());
    return rows;
  }

  void add_targets(std::span<const int32_t> ids, int64_t row_before, int64_t first_row) {
    for (size_t i = 0; i < ids.size(); ++i) {
      batch_.target_row.push_back(i == 0 ? row_before : first_row + static_cast<int64_t>(i) - 1);
      batch_.target.push_back(ids[i]);
    }
  }

  int64_t next_row() const { return static_cast<int64_t>(batch_.tokens.size()); }

  PackedBatch finish() {
    batch_.index = index_;
    return std::move(batch_);
  }

 private:
  PackedBatch batch_;
  std::shared_ptr<ops::PackedIndex> index_ = std::make_shared<ops::PackedIndex>();
};

}  // namespace

PackedBatch pack_groups(std::span<const SequenceGroup> groups) {
  Packer packer;
  for (const SequenceGroup& group : groups) {
    NIBBLE_CHECK(!group.prompt.empty(), "a prompt needs at least one token");
    const auto prompt_rows = packer.append(group.prompt, {});
    for (const auto& response : group.responses) {
      // The last response token predicts nothing that is trained on, so it is not computed.
      if (response.empty()) continue;
      const int64_t first = packer.next_row();
      packer.append(std::span(response).first(response.size() - 1), prompt_rows);
      packer.add_targets(response, prompt_rows.back(), first);
    }
  }
  return packer.finish();
}

PackedBatch pack_sequence(std::span<const int32_t> ids) {
  NIBBLE_CHECK(!ids.empty(), "a sequence needs at least one token");
  const SequenceGroup group{{ids[0]}, {{ids.begin() + 1, ids.end()}}};
  return pack_groups(std::span(&group, 1));
}

}  // namespace nibble
