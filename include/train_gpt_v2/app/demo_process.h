#pragma once
// Running another program and doing work on several threads, for the demo corpus.
//
// Programs are started with posix_spawn and an argument list, never through a shell: no text of the corpus can become
// a command. Both functions may be called from any thread.

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

// Starts arguments[0] (looked up in PATH), feeds it `input` and returns what it wrote to stdout. Its stderr is dropped.
// Errors: DEM001 with `package` when the program is not installed, DEM002 when it fails or writes over max_bytes.
std::string run_program(const std::vector<std::string>& arguments, std::string_view input, std::size_t max_bytes,
                        std::string_view package);

// work(0) .. work(count - 1) on up to `threads` threads, in any order. The first exception is thrown here, after all
// threads ended; the rest of the work is then left undone.
void parallel_for(std::size_t count, int threads, const std::function<void(std::size_t)>& work);

}  // namespace train_gpt_v2
