// Where Trainer's masters start: drawn at random, as adapters are too, read, or read and moved into
// the cells of calibrated codes.
#include <optional>

#include "core/base/fail.h"
#include "core/models/checkpoint_tensors.h"
#include "core/ops/torch_parallel.h"
#include "trainer/bf16_rows.h"
#include "trainer/state/calibrated_start.h"
#include "trainer/state/random_init.h"
#include "trainer/trainer.h"

namespace nibble {

void Trainer::draw_adapters() {
  std::vector<float> rows;
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    if (train_layout_.is_frozen(p)) continue;
    rows.resize(static_cast<size_t>(train_layout_.trained_elements(p)));
    draw_adapter_rows(spec_.table.at(p), p, train_layout_.trained(p), config_.seed,
                      ops::torch_parallel(), rows);
    state_.master[static_cast<size_t>(p)].assign(rows);
  }
}

void Trainer::load_masters() {
  if (config_.lora) return draw_adapters();
  const auto set = [&](int64_t p, const std::vector<float>& rows) {
    state_.master[static_cast<size_t>(p)].assign(rows);
  };
  if (config_.init == ModelInit::kRandom) {
    const RandomInit init{
        config_.seed,
        initializer_range(read_hf_config(config_.model), (config_.model / "config.json").string())};
    std::vector<float> rows;
    for (int64_t p = 0; p < spec_.table.size(); ++p) {
      rows.resize(static_cast<size_t>(train_layout_.shard_elements(p)));
      draw_rows(spec_.table.at(p), p, train_layout_.shard(p), init, ops::torch_parallel(), rows);
      set(p, rows);
    }
    return;
  }
  const HfDirectory model(config_.model);
  const QuantizationPlan stored = checkpoint_plan(model, spec_.table);
  check_checkpoint_tensors(model, spec_.table, stored);
  std::optional<CalibratedStart> calibrated;
  if (!config_.calibrated.empty()) {
    NIBBLE_CHECK(has_one_plan() && !stored.any(),
                 "a calibrated start of '{}' without QAT, or from quantized weights",
                 config_.calibrated.string());
    calibrated.emplace(config_.calibrated, spec_.table, config_.train_plan,
                       config_.calibrated_place);
  }
  for (int64_t p = 0; p < spec_.table.size(); ++p) {
    const ParameterSpec& parameter = spec_.table.at(p);
    const std::vector<uint16_t> weight = load_bf16(model, parameter);
    if (calibrated && train_layout_.quantized(p)) {
      const CalibratedRows rows =
          calibrated->rows(p, weight, train_layout_.shard(p), ops::torch_parallel());
      set(p, rows.master);
      state_.held_scale.emplace_back(std::span<const uint16_t>(rows.scale), state_device());
      continue;
    }
    set(p, widened_rows(weight, train_layout_.shard(p), parameter.cols));
    if (!calibrated) continue;
    calibrated->check_plain(p, weight);
    state_.held_scale.emplace_back(state_device());
  }
}

}  // namespace nibble
