#include "train_gpt_v2/app/demo_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

extern char** environ;

namespace train_gpt_v2 {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
};

struct Pipe {
  Pipe() : Pipe(make()) {}
  Descriptor read_end, write_end;

 private:
  explicit Pipe(std::array<int, 2> ends) : read_end(ends[0]), write_end(ends[1]) {}
  static std::array<int, 2> make() {
    std::array<int, 2> ends{};
    // Close-on-exec, so that a program started by another thread at this moment does not hold our ends open.
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Error("DEM002", concat("no pipe: ", std::strerror(errno)));
    return ends;
  }
};

struct SpawnActions {
  SpawnActions() { ::posix_spawn_file_actions_init(&value); }
  ~SpawnActions() { ::posix_spawn_file_actions_destroy(&value); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  posix_spawn_file_actions_t value;
};

// Feeds and drains both pipes at once, so that neither side waits for the other for ever.
std::string exchange(Descriptor& to, Descriptor& from, std::string_view input, std::size_t max_bytes, bool& overflow) {
  std::string output;
  std::array<char, 65536> chunk;
  ::fcntl(to.get(), F_SETFL, O_NONBLOCK);
  if (input.empty()) to.reset();
  while (true) {
    std::array<pollfd, 2> waiting{{{from.get(), POLLIN, 0}, {to.get(), POLLOUT, 0}}};
    if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) break;
    if (to.get() >= 0 && waiting[1].revents != 0) {
      const ssize_t written = ::write(to.get(), input.data(), input.size());
      if (written > 0) input.remove_prefix(static_cast<std::size_t>(written));
      const bool gone = written < 0 && errno != EAGAIN && errno != EINTR;
      if (input.empty() || gone) to.reset();
    }
    if (waiting[0].revents != 0) {
      const ssize_t got = ::read(from.get(), chunk.data(), chunk.size());
      if (got == 0 || (got < 0 && errno != EINTR)) break;
      if (got > 0) output.append(chunk.data(), static_cast<std::size_t>(got));
      if (output.size() > max_bytes) {
        overflow = true;
        break;
      }
    }
  }
  return output;
}

}  // namespace

std::string run_program(const std::vector<std::string>& arguments, std::string_view input, std::size_t max_bytes,
                        std::string_view package) {
  Pipe to_child, from_child;
  SpawnActions actions;
  ::posix_spawn_file_actions_adddup2(&actions.value, to_child.read_end.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions.value, from_child.write_end.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(&actions.value, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, argv[0], &actions.value, nullptr, argv.data(), environ);
  if (failure != 0) {
    throw Error("DEM001", concat("the program ", arguments[0], " cannot be started: ", std::strerror(failure)))
        .fix(concat("as root: apt-get install -y ", package));
  }
  to_child.read_end.reset();
  from_child.write_end.reset();
  bool overflow = false;
  std::string output = exchange(to_child.write_end, from_child.read_end, input, max_bytes, overflow);
  to_child.write_end.reset();
  from_child.read_end.reset();  // a child that still writes ends by SIGPIPE
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (overflow) throw Error("DEM002", concat(arguments[0], " wrote more than ", human_bytes(max_bytes)));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw Error("DEM002", concat(join(arguments, " "), " failed with status ",
                                 WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)))
        .fix(concat("is it complete? As root: apt-get install -y --reinstall ", package));
  }
  return output;
}

void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& work) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(failure_mutex);
        if (!failure) failure = std::current_exception();
        next = count;
      }
    }
  };
  const std::size_t extra = std::min<std::size_t>(count, static_cast<std::size_t>(std::max(threads, 1)));
  std::vector<std::jthread> pool;
  for (std::size_t i = 1; i < extra; ++i) pool.emplace_back(run);
  run();
  pool.clear();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace train_gpt_v2
