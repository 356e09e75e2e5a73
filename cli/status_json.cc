#include <cmath>

#include "cli/status_report.h"

namespace nibble {
namespace {

template <typename T>
OrderedJson or_null(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}

double seconds(int64_t ms) { return static_cast<double>(ms) / 1000.0; }

const char* state_name(CoordinatorState state) {
  switch (state) {
    case CoordinatorState::kRunning:
      return "running";
    case CoordinatorState::kNotAnswering:
      return "not_answering";
    case CoordinatorState::kNotRunning:
      return "not_running";
  }
  return "";
}

const char* role_name(WorkerRole role) {
  switch (role) {
    case WorkerRole::kTrainer:
      return "trainer";
    case WorkerRole::kRollout:
      return "rollout";
    case WorkerRole::kBoth:
      return "both";
  }
  return "";
}

OrderedJson standing_json(const std::optional<EngineStanding>& standing) {
  if (!standing) return nullptr;
  switch (*standing) {
    case EngineStanding::kStarting:
      return "starting";
    case EngineStanding::kServing:
      return "serving";
    case EngineStanding::kFenced:
      return "fenced";
  }
  return nullptr;
}

OrderedJson step_json(const RunRecord& record) {
  OrderedJson json = {{"last", nullptr},
                      {"status", nullptr},
                      {"seconds_since", nullptr},
                      {"finished", or_null(record.finished_step)},
                      {"total", or_null(record.num_steps)},
                      {"mean_ms", or_null(record.step_ms)},
                      {"tokens_per_s", or_null(record.tokens_per_s)}};
  if (record.last_step) {
    const StepRecord& step = *record.last_step;
    json["last"] = step.step;
    json["status"] = step.status == StepStatus::kDone      ? "done"
                     : step.status == StepStatus::kRunning ? "running"
                                                           : "failed";
    json["seconds_since"] =
        seconds(record.read_at_ms - step.ended_at_ms.value_or(step.started_at_ms));
  }
  return json;
}

OrderedJson versions_json(const RunRecord& record) {
  OrderedJson committed;
  if (record.committed) {
    committed = {{"version", record.committed->version},
                 {"epoch", record.committed->epoch},
                 {"step", record.committed->step},
                 {"members", record.committed->members}};
  }
  return {{"committed", committed}, {"undecided", record.undecided}, {"aborted", record.aborted}};
}

OrderedJson publication_json(const std::optional<PublicationFigures>& publication) {
  if (!publication) return nullptr;
  return {{"bytes", publication->bytes},       {"ms", publication->total_ms},
          {"wire_ms", publication->wire_ms},   {"gb_per_s", or_null(publication->gb_per_s())},
          {"pause_ms", publication->pause_ms}, {"serving_engines", publication->serving_engines}};
}

OrderedJson fencing_json(const RunRecord& record) {
  OrderedJson list = OrderedJson::array();
  for (const FencingRecord& engine : record.fencing) {
    list.push_back({{"engine", engine.engine},
                    {"fenced", engine.is_fenced},
                    {"times_fenced", engine.times_fenced},
                    {"times_caught_up", engine.times_caught_up}});
  }
  return list;
}

OrderedJson failure_json(const RunRecord& record) {
  if (!record.last_failure) return nullptr;
  const EventRecord& event = *record.last_failure;
  return {{"time_ms", event.time_ms},
          {"seconds_since", seconds(record.read_at_ms - event.time_ms)},
          {"severity", event.severity == Severity::kError ? "error" : "warning"},
          {"source", event.source},
          {"kind", event.kind},
          {"message", event.message}};
}

OrderedJson edge_json(const std::optional<EdgeInFlight>& edge) {
  if (!edge) return nullptr;
  return {{"version", edge->version},
          {"from_version", or_null(edge->from_version)},
          {"source", edge->source.empty() ? OrderedJson(nullptr) : OrderedJson(edge->source)},
          {"seconds", edge->age ? OrderedJson(seconds(edge->age->count())) : OrderedJson(nullptr)},
          {"arrived_bytes", or_null(edge->arrived_bytes)},
          {"expected_bytes", or_null(edge->expected_bytes)}};
}

OrderedJson engine_json(const WorkerView& worker, const EngineAnswer& answer) {
  const EngineStatus* status = answer.status ? &*answer.status : nullptr;
  OrderedJson json = {
      {"standing", standing_json(worker.standing)},
      {"answers", status != nullptr},
      {"error", status != nullptr ? OrderedJson(nullptr) : OrderedJson(answer.error)},
      {"state", nullptr},
      {"served_version", nullptr},
      {"epoch", nullptr},
      {"last_failure", nullptr},
      {"transfer", edge_json(edge_in_flight(worker.transfer, answer))}};
  if (status != nullptr) {
    json["state"] = status->state;
    json["served_version"] = status->served_version;
    json["epoch"] = status->epoch;
    json["last_failure"] = status->last_failure;
  }
  return json;
}

OrderedJson workers_json(const LiveStatus& live) {
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < live.job.workers.size(); ++i) {
    const WorkerView& worker = live.job.workers[i];
    const auto& answer = live.engines[i];
    list.push_back({{"id", worker.member.id},
                    {"role", role_name(worker.member.role)},
                    {"address", worker.member.address},
                    {"host", worker.member.host},
                    {"pid", worker.member.pid},
                    {"up", worker.is_up},
                    {"heartbeat_seconds", seconds(worker.heartbeat_age.count())},
                    {"engine", answer ? engine_json(worker, *answer) : OrderedJson(nullptr)}});
  }
  return list;
}

OrderedJson external_json(const JobView& job) {
  OrderedJson list = OrderedJson::array();
  for (const ExternalEngineView& view : job.external_engines) {
    list.push_back({{"name", view.engine.name},
                    {"host", view.engine.host},
                    {"pid", view.engine.pid},
                    {"served_version", view.engine.served_version},
                    {"heartbeat_seconds", seconds(view.heartbeat_age.count())},
                    {"last_failure", view.engine.last_failure}});
  }
  return list;
}

}  // namespace

OrderedJson status_json(const RunRecord& record, const LiveStatus& live) {
  OrderedJson coordinator;
  if (live.state == CoordinatorState::kRunning) {
    coordinator = {{"address", record.coordinator_address},
                   {"epoch", live.job.epoch},
                   {"version", live.job.version},
                   {"lease_ms", live.job.lease.count()}};
  }
  return {{"run", record.directory.string()},
          {"state", state_name(live.state)},
          {"step", step_json(record)},
          {"versions", versions_json(record)},
          {"publication", publication_json(record.publication)},
          {"fencing", fencing_json(record)},
          {"last_failure", failure_json(record)},
          {"coordinator", coordinator},
          {"workers", workers_json(live)},
          {"external_engines", external_json(live.job)}};
}

}  // namespace nibble
