#pragma once
// The manual page, made from what the program itself works with: its sub-commands and their options, the option table,
// the exit statuses and the error codes.

#include <string>

namespace CLI {
class App;
}

namespace train_gpt_v2 {

// troff with the man macros: `train_gpt_v2 config man | man -l -`.
std::string man_page(const CLI::App& app, const std::string& version);

}  // namespace train_gpt_v2
