#pragma once
// The log: stderr and, once a run directory exists, its log.txt. Lines look like
//   12:03:55 [data] 18,211 samples kept, 3 dropped
// Colour and the status line (progress bar) appear only on a terminal; files never hold control bytes.
// All functions may be called from any thread.

#include <string>
#include <string_view>

#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  LogLevel console_level = LogLevel::kInfo;  // -v: debug, -q: warning
  bool colour = true;                        // still only on a terminal, and never with NO_COLOR or TERM=dumb
};

void configure_logging(const LogOptions& options);

// Appends everything from now on to a file as well (debug level included). An unwritable file is a warning, once.
void add_log_file(const std::string& path);

// The live line below the log on a terminal; "" removes it. Does nothing elsewhere.
void set_status_line(const std::string& text);
bool console_is_terminal();

// `area` is the part of the program, shown as [area].
void log_message(LogLevel level, std::string_view area, std::string_view text);

template <typename... Parts>
void log_debug(std::string_view area, const Parts&... parts) {
  log_message(LogLevel::kDebug, area, concat(parts...));
}
template <typename... Parts>
void log_info(std::string_view area, const Parts&... parts) {
  log_message(LogLevel::kInfo, area, concat(parts...));
}
template <typename... Parts>
void log_warning(std::string_view area, const Parts&... parts) {
  log_message(LogLevel::kWarning, area, concat(parts...));
}

// Text for stderr as it is (error reports), above the status line; also into the log file.
void log_raw(std::string_view text);

}  // namespace train_gpt_v2
