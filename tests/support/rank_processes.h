#pragma once
// Real processes as the ranks of one run on this machine, over Gloo; they report by their exit status.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2::testing {

// One that the system gives out now; tests run side by side.
inline std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

// Runs `body` in `size` processes and gives their exit statuses (128 + signal for a death).
inline std::vector<int> fork_ranks(int size, const std::function<int(const RankEnvironment&)>& body) {
  const std::uint16_t port = free_port();
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      at::set_num_threads(1);  // OpenMP's other threads stayed with the parent
      RankEnvironment env;
      env.rank = rank;
      env.size = env.local_size = size;
      env.local_rank = rank;
      env.port = port;
      int status = 99;
      try {
        status = body(env);
      } catch (const Error& error) {
        std::fputs(error.report().c_str(), stderr);
        status = static_cast<int>(error.status());
      } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
      }
      std::_Exit(status);
    }
    children.push_back(pid);
  }
  std::vector<int> statuses;
  for (const pid_t pid : children) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    statuses.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  }
  return statuses;
}

// The same with ranks that have met; whoever throws an Error tells the others.
inline std::vector<int> run_ranks(int size, const std::function<int(Ranks&)>& body,
                                  const std::string& backend = "gloo") {
  return fork_ranks(size, [&](const RankEnvironment& env) {
    const auto index = static_cast<c10::DeviceIndex>(env.rank);
    Ranks ranks(env, backend, backend == "nccl" ? at::Device(at::kCUDA, index) : at::Device(at::kCPU));
    try {
      const int status = body(ranks);
      if (status == 0) ranks.leave();
      return status;
    } catch (const Error& error) {
      ranks.report_failure(error);
      return static_cast<int>(error.status());
    }
  });
}

}  // namespace train_gpt_v2::testing
