#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace nibble {

/// One request, as far as the API looks at it.
struct HttpRequest {
  std::string method;           ///< "GET", "POST", ...
  std::string path;             ///< without the query
  std::string query;            ///< what follows '?'; empty: nothing
  std::string authorization;    ///< header of that name
  std::string body;             ///< empty while only the head has been read
  int64_t num_connections = 0;  ///< that the server has
};

/// One answer that is known whole.
struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::string allow;      ///< of a 405: the methods that are
  int retry_after_s = 0;  ///< 0: not said
};

/// Where the answer to one request goes: either send(), or begin_stream(), any number of write()
/// and end(). Any thread may call any method; none of them waits for the client. A reply that is
/// dropped without an answer closes the connection.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void send(HttpResponse response) = 0;
  /// Status 200 with a body of server-sent events.
  virtual void begin_stream() = 0;
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  /// Runs `task` on a worker of the server, after the handler and one after another, in order.
  virtual void post(std::function<void()> task) = 0;
  /// Calls `callback`, once and from any thread, if the client goes away before the answer is
  /// written; at once if it has gone already.
  virtual void on_gone(std::function<void()> callback) = 0;
};

}  // namespace nibble
