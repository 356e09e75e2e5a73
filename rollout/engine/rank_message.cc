#include "rollout/engine/rank_message.h"

#include <cstring>
#include <type_traits>

#include "core/base/fail.h"

namespace nibble {
namespace {

class Writer {
 public:
  template <typename T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof value);
  }
  template <typename T>
  void put_all(std::span<const T> values) {
    put(static_cast<int64_t>(values.size()));
    const auto bytes = std::as_bytes(values);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T get() {
    T value;
    std::memcpy(&value, take(1, sizeof value), sizeof value);
    return value;
  }
  template <typename T>
  void get_all(std::vector<T>& values) {
    const auto count = get<int64_t>();
    const std::byte* from = take(count, sizeof(T));
    values.resize(static_cast<size_t>(count));
    if (count > 0) std::memcpy(values.data(), from, values.size() * sizeof(T));
  }
  void finish() const {
    if (at_ != bytes_.size()) fail(ErrorCode::kDataLoss, "a rank's order has bytes left over");
  }

 private:
  const std::byte* take(int64_t count, size_t size) {
    const size_t left = bytes_.size() - at_;
    if (count < 0 || static_cast<size_t>(count) > left / size) {
      fail(ErrorCode::kDataLoss, "a rank's order of {} bytes ends early", bytes_.size());
    }
    const std::byte* from = bytes_.data() + at_;
    at_ += static_cast<size_t>(count) * size;
    return from;
  }

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

}  // namespace

std::vector<std::byte> encode_runner_sizes(const RunnerSizes& sizes) {
  Writer to;
  to.put(sizes.config);
  to.put_all(std::span<const int64_t>(sizes.graph_batches));
  return to.take();
}

RunnerSizes decode_runner_sizes(std::span<const std::byte> bytes) {
  Reader from(bytes);
  RunnerSizes sizes;
  sizes.config = from.get<EngineConfig>();
  from.get_all(sizes.graph_batches);
  from.finish();
  return sizes;
}

std::vector<std::byte> encode_step(const StepPlan& plan,
                                   std::span<const std::pair<int64_t, int32_t>> slot_changes) {
  Writer to;
  to.put_all(std::span<const int32_t>(plan.tokens));
  to.put_all(std::span<const int32_t>(plan.position));
  to.put_all(std::span<const int32_t>(plan.slot));
  to.put_all(std::span<const int64_t>(plan.first));
  to.put_all(std::span<const int32_t>(plan.count));
  std::vector<int64_t> values;
  for (const Draw& draw : plan.draws) values.push_back(draw.row);
  to.put_all(std::span<const int64_t>(values));
  values.clear();
  for (const auto& [index, slot] : slot_changes) {
    values.push_back(index);
    values.push_back(slot);
  }
  to.put_all(std::span<const int64_t>(values));
  return to.take();
}

void decode_step(std::span<const std::byte> bytes, StepOrder& order) {
  Reader from(bytes);
  StepPlan& plan = order.plan;
  plan.clear();
  from.get_all(plan.tokens);
  from.get_all(plan.position);
  from.get_all(plan.slot);
  from.get_all(plan.first);
  from.get_all(plan.count);
  std::vector<int64_t> values;
  from.get_all(values);
  for (const int64_t row : values) {
    Draw draw;
    draw.row = row;
    plan.draws.push_back(std::move(draw));
  }
  from.get_all(values);
  from.finish();
  const size_t tokens = plan.tokens.size();
  if (plan.position.size() != tokens || plan.slot.size() != tokens || plan.first.size() != tokens ||
      plan.count.size() != tokens || values.size() % 2 != 0) {
    fail(ErrorCode::kDataLoss, "a rank's order of {} tokens does not fit together", tokens);
  }
  order.slot_changes.clear();
  for (size_t i = 0; i < values.size(); i += 2) {
    order.slot_changes.emplace_back(values[i], static_cast<int32_t>(values[i + 1]));
  }
}

}  // namespace nibble
