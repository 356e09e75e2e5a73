#include "trainer/load_spec.h"

#include "core/base/fail.h"
#include "core/checkpoint/hf_directory.h"

namespace nibble {

ModelSpec load_spec(const std::filesystem::path& directory, const Mesh& mesh,
                    const std::optional<LoraShape>& lora) {
  ModelConfig config =
      parse_model_config(read_hf_config(directory), (directory / "config.json").string());
  config.lora = lora;
  if (const auto problem = mesh_problem(config, mesh)) {
    fail(ErrorCode::kInvalidArgument, "'{}' cannot be shared so: {}", directory.string(), *problem);
  }
  return make_model_spec(config);
}

}  // namespace nibble
