#include "train_gpt_v2/app/vocoder.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "train_gpt_v2/app/demo_speech.h"
#include "train_gpt_v2/app/demo_vocoder.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/data/manifest.h"

extern char** environ;

namespace train_gpt_v2 {
namespace {

constexpr auto kLongest = std::chrono::minutes(10);
constexpr int kSampleRate = 22'050;  // of the demo corpus

Error bad_command(const std::string& command, const std::string& reason) {
  return Error("CFG022", concat("the vocoder command ", reason))
      .detail(command)
      .fix("e.g. \"my_vocoder {codes} {out}\"");
}

std::string replaced(std::string word, std::string_view name, const std::string& value) {
  for (std::size_t at = word.find(name); at != std::string::npos; at = word.find(name, at + value.size())) {
    word.replace(at, name.size(), value);
  }
  return word;
}

// Actions and attributes of the child: no terminal input, its own process group, default signals.
struct Launch {
  Launch() {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    ::posix_spawnattr_init(&attributes);
    sigset_t defaults;
    ::sigemptyset(&defaults);
    ::sigaddset(&defaults, SIGPIPE);
    ::sigaddset(&defaults, SIGXFSZ);
    ::posix_spawnattr_setsigdefault(&attributes, &defaults);
    ::posix_spawnattr_setpgroup(&attributes, 0);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  ~Launch() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
};

void run_command(const std::vector<std::string>& words, const std::function<bool()>& stop) {
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const Launch launch;
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, argv[0], &launch.actions, &launch.attributes, argv.data(), environ);
  if (failure != 0)
    throw Error("IO007", concat("the vocoder ", words[0], " cannot be started: ", std::strerror(failure)));
  const auto deadline = std::chrono::steady_clock::now() + kLongest;
  int status = 0;
  for (pid_t ended = 0; ended != child; std::this_thread::sleep_for(std::chrono::milliseconds(5))) {
    ended = ::waitpid(child, &status, WNOHANG);
    if (ended < 0 && errno != EINTR) throw Error("IO007", concat("the vocoder was lost: ", std::strerror(errno)));
    const bool late = std::chrono::steady_clock::now() > deadline;
    if (ended != child && (late || (stop && stop()))) {
      ::kill(-child, SIGKILL);
      while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
      }
      throw Error("IO007",
                  late ? "the vocoder took longer than ten minutes" : "the vocoder was ended by a stop signal");
    }
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw Error("IO007", concat("the vocoder failed with status ",
                                WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)))
        .detail(join(words, " "));
  }
}

Vocoder command_vocoder(const std::string& command) {
  const std::vector<std::string> words = split_command(command);
  return [words](const VocoderInput& input, const std::string& wav_path) {
    std::vector<std::string> arguments;
    for (const std::string& word : words) {
      // Both names at once, left to right, so that a path that holds "{out}" stays what it is.
      const std::size_t at = word.find("{codes}");
      if (at == std::string::npos) {
        arguments.push_back(replaced(word, "{out}", wav_path));
      } else {
        arguments.push_back(replaced(word.substr(0, at), "{out}", wav_path) + input.codes_path +
                            replaced(word.substr(at + 7), "{out}", wav_path));
      }
    }
    run_command(arguments, input.stop);
    if (!file_exists(wav_path)) throw Error("IO007", "the vocoder ended well but wrote no file").detail(wav_path);
  };
}

}  // namespace

std::vector<std::string> split_command(const std::string& command) {
  std::vector<std::string> words;
  std::string word;
  bool open = false;  // a word has begun, perhaps an empty one in quotes
  char quote = 0;
  for (std::size_t i = 0; i < command.size(); ++i) {
    const char c = command[i];
    if (c == '\\' && quote != '\'' && i + 1 < command.size()) {
      word += command[++i];
      open = true;
    } else if (quote != 0 ? c == quote : c == '\'' || c == '"') {
      quote = quote != 0 ? 0 : c;
      open = true;
    } else if (quote == 0 && (c == ' ' || c == '\t')) {
      if (open) words.push_back(std::move(word));
      word.clear();
      open = false;
    } else {
      word += c;
      open = true;
    }
  }
  if (quote != 0) throw bad_command(command, "has an open quote");
  if (open) words.push_back(std::move(word));
  if (words.empty() || words[0].empty()) throw bad_command(command, "names no program");
  for (const char* name : {"{codes}", "{out}"}) {
    if (command.find(name) == std::string::npos) throw bad_command(command, concat("does not hold ", name));
  }
  return words;
}

Vocoder make_vocoder(const std::string& command, const std::vector<std::string>& manifests) {
  if (!command.empty()) return command_vocoder(command);
  for (const std::string& manifest : manifests) {
    const std::string folder = path_join(parent_path(parse_manifest_spec(manifest).path), "codebook");
    if (!file_exists(path_join(folder, "centroids.npy"))) continue;
    const auto vocoder = std::make_shared<const DemoVocoder>(folder);
    return [vocoder](const VocoderInput& input, const std::string& wav_path) {
      write_wav(wav_path, vocoder->synthesize(input.codes, input.one.speaker), kSampleRate);
    };
  }
  return {};
}

}  // namespace train_gpt_v2
