#include "cli/sync_bench_groups.h"

#include <algorithm>
#include <numeric>

#include "core/base/clock.h"

namespace nibble {
namespace {

constexpr int kReportTag = 7;

}  // namespace

std::vector<double> BenchControl::gather(double value) {
  std::vector<double> all(static_cast<size_t>(group_->world()));
  group_->all_gather(std::as_bytes(std::span(&value, 1)), std::as_writable_bytes(std::span(all)))
      ->wait();
  return all;
}

double BenchControl::most(double value) {
  const std::vector<double> all = gather(value);
  return *std::max_element(all.begin(), all.end());
}

double BenchControl::sum(double value) {
  const std::vector<double> all = gather(value);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

double BenchControl::timed(const std::function<void()>& body) {
  gather(0.0);
  const Stopwatch watch;
  body();
  return most(watch.elapsed_ms());
}

void send_report(const SenderReport& report, ProcessGroup& group, int receiver, Deadline deadline) {
  std::vector<quant::ContentHash> hashes;
  for (const SliceHash& slice : report.slices) hashes.push_back(slice.hash);
  group.send(std::as_bytes(std::span(hashes)), receiver, kReportTag)->wait_until(deadline);
}

std::vector<SenderReport> receive_reports(const SyncPlan& plan, const Transaction& transaction,
                                          ProcessGroup& group, Deadline deadline) {
  std::vector<SenderReport> reports;
  for (const Edge& edge : plan.edges) {
    std::vector<quant::ContentHash> hashes(edge.slices.size());
    group.receive(std::as_writable_bytes(std::span(hashes)), edge.sender, kReportTag)
        ->wait_until(deadline);
    SenderReport& report = reports.emplace_back(SenderReport{edge.sender, transaction, {}});
    for (size_t i = 0; i < hashes.size(); ++i) {
      report.slices.push_back({edge.slices[i].slice, hashes[i]});
    }
  }
  return reports;
}

}  // namespace nibble
