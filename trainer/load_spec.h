#pragma once

#include <filesystem>

#include "core/models/decoder.h"
#include "core/spec/mesh.h"

namespace nibble {

/// The model that a Hugging Face directory's config.json describes. Throws Error{kInvalidArgument}
/// naming what of the mesh does not fit it.
ModelSpec load_spec(const std::filesystem::path& directory, const Mesh& mesh);

}  // namespace nibble
