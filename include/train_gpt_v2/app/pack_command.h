#pragma once
// `train_gpt_v2 pack`, and what `inspect` says about a packed set (data/packed_set.h).

#include <ostream>
#include <string>

namespace CLI {
class App;
}

namespace train_gpt_v2 {

void add_pack_command(CLI::App& app);

// With `verify` every byte is read and compared with its checksum. Errors DAT030, DAT031.
void run_inspect_packed(const std::string& folder, bool verify, bool json, std::ostream& out);

}  // namespace train_gpt_v2
