#pragma once

#include <filesystem>
#include <optional>

#include "core/models/decoder.h"
#include "core/spec/mesh.h"

namespace nibble {

/// The model that a Hugging Face directory's config.json describes. Throws Error{kInvalidArgument}
/// naming what of the mesh does not fit it.
///   lora  adapters beside its matrices
ModelSpec load_spec(const std::filesystem::path& directory, const Mesh& mesh,
                    const std::optional<LoraShape>& lora = {});

}  // namespace nibble
