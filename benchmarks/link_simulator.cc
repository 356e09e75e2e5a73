#include "benchmarks/link_simulator.h"

#include <algorithm>
#include <deque>
#include <limits>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Events this close, as a share of a chunk's bytes or of a link's rate, are one.
constexpr double kEqual = 1e-9;

bool is_index(int index, size_t size) { return index >= 0 && static_cast<size_t>(index) < size; }

void check(const SimNetwork& network) {
  for (const double rate : network.link_bytes_per_s) {
    if (!(rate > 0.0)) fail(ErrorCode::kInvalidArgument, "a link of {} bytes/s", rate);
  }
  for (const auto& links : network.connections) {
    if (links.empty()) fail(ErrorCode::kInvalidArgument, "a connection without links");
    for (const int link : links) {
      if (!is_index(link, network.link_bytes_per_s.size())) {
        fail(ErrorCode::kInvalidArgument, "there is no link {}", link);
      }
    }
  }
  for (const auto& chunk : network.chunks) {
    if (chunk.bytes <= 0 || !is_index(chunk.connection, network.connections.size())) {
      fail(ErrorCode::kInvalidArgument, "a chunk of {} bytes on connection {}", chunk.bytes,
           chunk.connection);
    }
    for (const int other : chunk.after) {
      if (!is_index(other, network.chunks.size())) {
        fail(ErrorCode::kInvalidArgument, "there is no chunk {}", other);
      }
    }
  }
}

class Simulation {
 public:
  explicit Simulation(const SimNetwork& network)
      : network_(network),
        missing_(network.chunks.size()),
        waiting_(network.chunks.size()),
        connections_(network.connections.size()),
        free_(network.link_bytes_per_s.size()),
        users_(network.link_bytes_per_s.size()) {
    for (size_t i = 0; i < network.chunks.size(); ++i) {
      const auto& after = network.chunks[i].after;
      missing_[i] = after.size();
      for (const int other : after) {
        waiting_[static_cast<size_t>(other)].push_back(static_cast<int>(i));
      }
    }
    for (size_t i = 0; i < network.chunks.size(); ++i) {
      if (missing_[i] == 0) make_ready(static_cast<int>(i));
    }
  }

  double run() {
    double now = 0.0;
    size_t arrived = 0;
    while (!active_.empty()) {
      if (is_changed_) share_links();
      double step = kInfinity;
      for (const int c : active_) step = std::min(step, at(c).left / at(c).rate);
      now += step;
      arrived += advance(step);
    }
    if (arrived != network_.chunks.size()) {
      fail(ErrorCode::kInvalidArgument, "{} of {} chunks wait for each other",
           network_.chunks.size() - arrived, network_.chunks.size());
    }
    return now;
  }

 private:
  struct Connection {
    std::deque<int> ready;  // the first one is on its way
    double left = 0.0;      // bytes of it
    double rate = 0.0;
  };

  Connection& at(int connection) { return connections_[static_cast<size_t>(connection)]; }
  const SimNetwork::Chunk& chunk(int id) const { return network_.chunks[static_cast<size_t>(id)]; }

  void make_ready(int id) {
    Connection& connection = at(chunk(id).connection);
    connection.ready.push_back(id);
    if (connection.ready.size() > 1) return;
    connection.left = static_cast<double>(chunk(id).bytes);
    active_.push_back(chunk(id).connection);
    is_changed_ = true;
  }

  // Returns how many chunks arrived. All that arrive now leave before any new one starts, so that
  // order in the list does not matter.
  size_t advance(double step) {
    std::vector<int> done;
    for (const int c : active_) {
      Connection& connection = at(c);
      connection.left -= step * connection.rate;
      const int id = connection.ready.front();
      if (connection.left > kEqual * static_cast<double>(chunk(id).bytes)) continue;
      done.push_back(id);
      connection.ready.pop_front();
      if (!connection.ready.empty()) {
        connection.left = static_cast<double>(chunk(connection.ready.front()).bytes);
      }
    }
    const size_t before = active_.size();
    std::erase_if(active_, [this](int c) { return at(c).ready.empty(); });
    if (active_.size() != before) is_changed_ = true;
    for (const int id : done) {
      for (const int next : waiting_[static_cast<size_t>(id)]) {
        if (--missing_[static_cast<size_t>(next)] == 0) make_ready(next);
      }
    }
    return done.size();
  }

  // Max-min fair rates by progressive filling.
  void share_links() {
    is_changed_ = false;
    free_ = network_.link_bytes_per_s;
    std::fill(users_.begin(), users_.end(), 0);
    std::vector<int> open = active_;
    for (const int c : open) {
      for (const int link : links(c)) ++users_[static_cast<size_t>(link)];
    }
    while (!open.empty()) {
      double least = kInfinity;
      for (size_t l = 0; l < free_.size(); ++l) {
        if (users_[l] > 0) least = std::min(least, free_[l] / users_[l]);
      }
      // Decided before rates are taken off, so that equal links stop together.
      std::vector<bool> is_full(free_.size());
      for (size_t l = 0; l < free_.size(); ++l) {
        is_full[l] = users_[l] > 0 && free_[l] / users_[l] <= least * (1.0 + kEqual);
      }
      std::erase_if(open, [&](int c) {
        const auto& path = links(c);
        if (std::none_of(path.begin(), path.end(),
                         [&](int l) { return is_full[static_cast<size_t>(l)]; })) {
          return false;
        }
        at(c).rate = least;
        for (const int link : path) {
          free_[static_cast<size_t>(link)] -= least;
          --users_[static_cast<size_t>(link)];
        }
        return true;
      });
    }
  }

  const std::vector<int>& links(int connection) const {
    return network_.connections[static_cast<size_t>(connection)];
  }

  const SimNetwork& network_;
  std::vector<size_t> missing_;            // arrivals that each chunk waits for
  std::vector<std::vector<int>> waiting_;  // chunks that wait for each
  std::vector<Connection> connections_;
  std::vector<int> active_;  // connections with a chunk on its way
  bool is_changed_ = false;  // active_, since rates were set
  std::vector<double> free_;
  std::vector<int> users_;
};

}  // namespace

double simulate(const SimNetwork& network) {
  check(network);
  return Simulation(network).run();
}

}  // namespace nibble
