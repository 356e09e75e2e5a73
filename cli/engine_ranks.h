#pragma once

#include <functional>

#include "cli/model_flags.h"

namespace nibble {

/// Runs `body`, a command whose engine computes with flags.tensor ranks: in this process if there
/// is one. Else each rank gets a process of its own; the first runs `body` with flags.rank set, has
/// this process's standard streams and gets its signals, the others follow its engine until it ends
/// (follow_leader()). `flags` is what `body` reads. Throws what the first of them to fail threw. To
/// be called before this process starts threads or uses a GPU.
void run_on_ranks(ModelFlags& flags, const std::function<void()>& body);

}  // namespace nibble
