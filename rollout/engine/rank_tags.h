#pragma once

namespace nibble {

/// Tags of what a leader sends; see ProcessGroup::send.
constexpr int kRankHeaderTag = 101;
constexpr int kRankBodyTag = 102;

}  // namespace nibble
