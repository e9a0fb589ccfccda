#pragma once
// Signals and trigger files (interface.md §7). Handlers only set flags; the trainer polls them between micro-batches
// and inside validation, sampling and the loader.

#include <atomic>
#include <string>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

// Call once at start. SIGPIPE and SIGXFSZ are ignored; SIGHUP stays ignored where it was at start (nohup); a second
// SIGINT leaves at once with status 130 (a stop that was asked for otherwise does not count as the first).
void install_signal_handlers();

// The status a stop was asked with (130, 143, 129), kOk when none was.
ExitStatus stop_requested();
bool take_save_request();    // SIGUSR1: true once per signal
bool take_status_request();  // SIGUSR2
void request_stop(ExitStatus status);

// Looks for files named `save` and `stop` in the run directory, removes them and sets the same flags. Folders of these
// names, and files that cannot be removed, do nothing. Never throws.
void poll_trigger_files(const std::string& run_directory);

// Clears all flags (tests; several runs in one process).
void reset_signal_flags();

}  // namespace train_gpt_v2
