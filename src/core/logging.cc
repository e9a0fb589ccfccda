#include "train_gpt_v2/core/logging.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

namespace train_gpt_v2 {
namespace {

bool terminal() {
  static const bool is = [] {
    const char* term = std::getenv("TERM");
    return ::isatty(STDERR_FILENO) == 1 && !(term && std::strcmp(term, "dumb") == 0);
  }();
  return is;
}

// stderr with colours and one live line that stays below everything else.
class ConsoleSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void set_colour(bool colour) {
    std::lock_guard<std::mutex> guard(mutex_);
    colour_ = colour && terminal() && !std::getenv("NO_COLOR");
  }

  void set_status(const std::string& text) {
    std::lock_guard<std::mutex> guard(mutex_);
    if (!terminal() || (text.empty() && status_.empty())) return;
    status_ = text;
    put("\r\x1b[2K" + fitted());
  }

  void raw(std::string_view text) {
    std::lock_guard<std::mutex> guard(mutex_);
    emit(std::string(text));
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t formatted;
    formatter_->format(message, formatted);
    std::string line(formatted.data(), formatted.size());
    if (colour_ && message.level >= spdlog::level::warn) {
      const char* colour = message.level >= spdlog::level::err ? "\x1b[31m" : "\x1b[33m";
      line = colour + line.substr(0, line.size() - 1) + "\x1b[0m\n";
    }
    emit(line);
  }
  void flush_() override {}

 private:
  void emit(const std::string& text) { put(status_.empty() ? text : "\r\x1b[2K" + text + fitted()); }

  // The status line cut to the width of the terminal, which may change at any time.
  std::string fitted() const {
    winsize size{};
    const std::size_t columns =
        ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1u : 79u;
    std::size_t bytes = 0, shown = 0;
    while (bytes < status_.size()) {
      const bool starts_character = (static_cast<unsigned char>(status_[bytes]) & 0xC0) != 0x80;
      if (starts_character && shown++ == columns) break;
      ++bytes;
    }
    return status_.substr(0, bytes);
  }

  static void put(const std::string& text) {
    std::size_t done = 0;
    while (done < text.size()) {
      const ssize_t written = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
      if (written <= 0) return;  // a closed terminal must not stop a run
      done += static_cast<std::size_t>(written);
    }
  }

  std::string status_;
  bool colour_ = false;
};

struct Log {
  std::shared_ptr<ConsoleSink> console = std::make_shared<ConsoleSink>();
  std::shared_ptr<spdlog::sinks::basic_file_sink_mt> file;
  std::mutex mutex;
  std::shared_ptr<spdlog::logger> logger = std::make_shared<spdlog::logger>("train_gpt_v2", console);

  Log() {
    console->set_pattern("%H:%M:%S %v");
    console->set_colour(true);
    logger->set_level(spdlog::level::debug);
    console->set_level(spdlog::level::info);
    logger->set_error_handler([](const std::string&) {});  // logging never stops training
  }
};

Log& the_log() {
  static Log* log = new Log;  // never destroyed: threads may log until the very end
  return *log;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void configure_logging(const LogOptions& options) {
  the_log().console->set_level(to_spdlog(options.console_level));
  the_log().console->set_colour(options.colour);
}

void add_log_file(const std::string& path) {
  Log& log = the_log();
  try {
    auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    file->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %L %v");
    std::lock_guard<std::mutex> guard(log.mutex);
    log.file = file;
    auto logger = std::make_shared<spdlog::logger>("train_gpt_v2", spdlog::sinks_init_list{log.console, file});
    logger->set_level(spdlog::level::debug);
    logger->flush_on(spdlog::level::debug);
    logger->set_error_handler([](const std::string&) {});
    log.logger = logger;
  } catch (const spdlog::spdlog_ex& failure) {
    log_warning("log", "cannot write ", path, ": ", failure.what(), "; the log goes to the console alone");
  }
}

void set_status_line(const std::string& text) {
  the_log().console->set_status(text);
}
bool console_is_terminal() {
  return terminal();
}

void log_message(LogLevel level, std::string_view area, std::string_view text) {
  Log& log = the_log();
  std::shared_ptr<spdlog::logger> logger;
  {
    std::lock_guard<std::mutex> guard(log.mutex);
    logger = log.logger;
  }
  const char* mark = level == LogLevel::kWarning ? "warning: " : level == LogLevel::kError ? "error: " : "";
  logger->log(to_spdlog(level), "[{}] {}{}", area, mark, text);
}

void log_raw(std::string_view text) {
  Log& log = the_log();
  log.console->raw(text);
  std::lock_guard<std::mutex> guard(log.mutex);
  if (!log.file) return;
  spdlog::details::log_msg message("", spdlog::level::err, spdlog::string_view_t(text.data(), text.size()));
  log.file->log(message);
  log.file->flush();
}

}  // namespace train_gpt_v2
