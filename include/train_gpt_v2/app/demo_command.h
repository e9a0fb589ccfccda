#pragma once
// `train_gpt_v2 demo-data` and `demo-summary` (the step with which scripts/quickstart.sh ends).

namespace CLI {
class App;
}

namespace train_gpt_v2 {

void add_demo_commands(CLI::App& app);

}  // namespace train_gpt_v2
