// nibble-reward TYPE: scores samples for a rollout worker over standard input and output. Started
// by `nibble`, not by people.
#include <cstdio>
#include <exception>

#include "rollout/reward/reward_protocol.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: nibble-reward TYPE (started by nibble; see `nibble score --help`)\n",
               stderr);
    return 2;
  }
  try {
    return nibble::run_reward_worker(argv[1], 0, 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nibble-reward: %s\n", error.what());
    return 1;
  }
}
