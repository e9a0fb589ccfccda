#include "train_gpt_v2/core/signals.h"

#include <signal.h>
#include <unistd.h>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

// Lock-free atomics are the only state a handler may touch.
std::atomic<int> stop_status{0};
std::atomic<bool> interrupted{false};  // by a real SIGINT; other ranks and a `stop` file ask with its status too
std::atomic<bool> save_wanted{false};
std::atomic<bool> status_wanted{false};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

void on_signal(int number) {
  switch (number) {
    case SIGINT:
      if (interrupted.exchange(true)) ::_exit(static_cast<int>(ExitStatus::kSigint));
      stop_status = static_cast<int>(ExitStatus::kSigint);
      break;
    case SIGTERM:
      stop_status = static_cast<int>(ExitStatus::kSigterm);
      break;
    case SIGHUP:
      stop_status = static_cast<int>(ExitStatus::kSighup);
      break;
    case SIGUSR1:
      save_wanted = true;
      break;
    case SIGUSR2:
      status_wanted = true;
      break;
    default:
      break;
  }
}

std::atomic<bool> save_refused{false}, stop_refused{false};

// True when a file of this name was there and is gone now. One that cannot be removed would ask again at every look:
// it does not count, which is said once.
bool take_file(const std::string& path, std::atomic<bool>& refused) {
  if (!file_exists(path)) return false;
  try {
    remove_file(path);
    return true;
  } catch (const Error& failure) {
    if (!refused.exchange(true)) {
      log_warning("signals", failure.message(), " ", failure.place(), "; as long as it stays it is ignored");
    }
    return false;
  }
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) ::sigaction(number, &action, nullptr);
  struct sigaction hangup {};
  ::sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
}

ExitStatus stop_requested() {
  return static_cast<ExitStatus>(stop_status.load());
}
bool take_save_request() {
  return save_wanted.exchange(false);
}
bool take_status_request() {
  return status_wanted.exchange(false);
}
void request_stop(ExitStatus status) {
  stop_status = static_cast<int>(status);
}

void poll_trigger_files(const std::string& run_directory) {
  if (take_file(path_join(run_directory, "save"), save_refused)) save_wanted = true;
  if (take_file(path_join(run_directory, "stop"), stop_refused)) {
    stop_status = static_cast<int>(ExitStatus::kSigint);
  }
}

void reset_signal_flags() {
  stop_status = 0;
  interrupted = false;
  save_wanted = false;
  status_wanted = false;
  save_refused = false;
  stop_refused = false;
}

}  // namespace train_gpt_v2
