#include <boost/asio/post.hpp>
#include <utility>

#include "rollout/server/http_connection.h"

namespace nibble {

namespace asio = boost::asio;

ConnectionReply::ConnectionReply(const std::shared_ptr<HttpConnection>& connection,
                                 asio::thread_pool& workers, uint64_t request)
    : connection_(connection),
      sockets_(connection->socket_.get_executor()),
      strand_(workers.get_executor()),
      request_(request) {}

ConnectionReply::~ConnectionReply() {
  if (!has_ended_) {
    to_connection([](HttpConnection& connection) { connection.drop_answer(); });
  }
}

void ConnectionReply::to_connection(std::function<void(HttpConnection&)> action) {
  asio::post(sockets_, [weak = connection_, request = request_, action = std::move(action)] {
    const auto connection = weak.lock();
    if (!connection || connection->request_ != request) return;
    if (connection->phase_ == HttpConnection::Phase::kWorking) action(*connection);
  });
}

void ConnectionReply::send(HttpResponse response) {
  if (has_ended_.exchange(true)) return;
  to_connection([response = std::move(response)](HttpConnection& connection) {
    connection.refuse(response);
  });
}

void ConnectionReply::begin_stream() {
  to_connection([](HttpConnection& connection) {
    HttpResponse response;
    response.content_type = "text/event-stream; charset=utf-8";
    connection.begin_answer(connection.head_of(response, std::nullopt), false);
  });
}

void ConnectionReply::write(std::string piece) {
  if (piece.empty()) return;  // an empty chunk would end the body
  to_connection([piece = std::move(piece)](HttpConnection& connection) {
    connection.add_to_answer(connection.chunk_of(piece), false);
  });
}

void ConnectionReply::end() {
  if (has_ended_.exchange(true)) return;
  to_connection([](HttpConnection& connection) {
    connection.add_to_answer(connection.is_http_1_0_ ? "" : "0\r\n\r\n", true);
  });
}

void ConnectionReply::post(std::function<void()> task) { asio::post(strand_, std::move(task)); }

void ConnectionReply::on_gone(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!is_gone_) {
      callback_ = std::move(callback);
      return;
    }
  }
  callback();
}

void ConnectionReply::client_gone() {
  std::function<void()> callback;
  {
    const std::lock_guard lock(mutex_);
    is_gone_ = true;
    callback = std::exchange(callback_, nullptr);
  }
  if (callback) callback();
}

}  // namespace nibble
