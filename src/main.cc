#include "train_gpt_v2/app/cli.h"

int main(int argc, char** argv) {
  return train_gpt_v2::run_command_line(argc, argv);
}
