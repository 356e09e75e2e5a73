// A reward worker that misbehaves on demand.
//   reward_test_worker real TYPE   run_reward_worker
//   reward_test_worker faulty      does what each response says, else scores its length
//   reward_test_worker silent      never says that it is ready
//   reward_test_worker chatty      says something else
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include "rollout/reward/reward_protocol.h"

namespace nibble {
namespace {

void say(const std::string& text) { std::cout << text << std::flush; }

[[noreturn]] void hang() {
  while (true) ::pause();
}

[[noreturn]] void allocate_until_dead() {
  std::vector<std::vector<char>> blocks;
  while (true) blocks.emplace_back(16 << 20, 'x');
}

double count_descriptors() {
  double count = 0;
  for (int fd = 0; fd < 4096; ++fd) count += ::fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
  return count;
}

double count_environment() {
  double count = 0;
  for (char** entry = environ; *entry != nullptr; ++entry) ++count;
  return count;
}

/// Whether a file of one byte can be written at `path`.
double can_write(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const bool did_write = fd >= 0 && ::write(fd, "x", 1) == 1;
  ::unlink(path.c_str());
  return did_write ? 1 : 0;
}

double core_limit() {
  rlimit limit{};
  ::getrlimit(RLIMIT_CORE, &limit);
  return static_cast<double>(limit.rlim_cur);
}

double obey(const std::string& order) {
  if (order == "hang") hang();
  if (order == "crash") ::raise(SIGKILL);
  if (order == "exit") std::_Exit(3);
  if (order == "bomb") allocate_until_dead();
  if (order == "garbage") say("42 is the answer\n");
  if (order == "endless") {
    while (true) say(std::string(1 << 16, 'x'));
  }
  if (order == "wrong id") say(encode_reply({-5, 1.0}));
  if (order == "descriptors") return count_descriptors();
  if (order == "environment") return count_environment();
  if (order == "core limit") return core_limit();
  if (order.starts_with("write ")) return can_write(order.substr(6));
  if (order.starts_with("crash once ")) {
    const std::string mark = order.substr(11);
    if (!std::filesystem::exists(mark)) {
      ::close(::open(mark.c_str(), O_WRONLY | O_CREAT, 0600));
      ::raise(SIGKILL);
    }
  }
  return static_cast<double>(order.size());
}

int run_faulty() {
  say(encode_ready("faulty"));
  std::string line;
  while (std::getline(std::cin, line)) {
    const RewardRequest request = decode_request(line);
    if (request.response == "refuse") {
      say(encode_reply({request.id, Error(ErrorCode::kInvalidArgument, "refused")}));
    } else {
      say(encode_reply({request.id, obey(request.response)}));
    }
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "real" && argc > 2) {
    return nibble::run_reward_worker(argv[2], STDIN_FILENO, STDOUT_FILENO);
  }
  if (mode == "faulty") return nibble::run_faulty();
  if (mode == "silent") nibble::hang();
  if (mode == "chatty") nibble::say("hello\n");
  return 1;
}
