#include "train_gpt_v2/core/error.h"

#include "train_gpt_v2/core/error_codes.h"

namespace train_gpt_v2 {

Error::Error(std::string_view code, std::string message) : code_(code), message_(std::move(message)) {
  refresh();
}

Error&& Error::where(std::string_view file, long line, long column) && {
  place_ = file;
  if (line > 0) place_ += ":" + std::to_string(line);
  if (line > 0 && column > 0) place_ += ":" + std::to_string(column);
  refresh();
  return std::move(*this);
}

Error&& Error::at(std::string place) && {
  place_ = std::move(place);
  refresh();
  return std::move(*this);
}

Error&& Error::detail(std::string line) && {
  details_.push_back(std::move(line));
  refresh();
  return std::move(*this);
}

Error&& Error::fix(std::string hint) && {
  hint_ = std::move(hint);
  refresh();
  return std::move(*this);
}

ExitStatus Error::status() const {
  const ErrorCode* known = find_error_code(code_);
  return known ? known->status : ExitStatus::kInternal;
}

std::string Error::report() const {
  std::string text = "error[" + code_ + "]: " + message_ + "\n";
  if (!place_.empty()) text += "  --> " + place_ + "\n";
  for (const std::string& line : details_) text += "  " + line + "\n";
  if (!hint_.empty()) text += "  fix: " + hint_ + "\n";
  return text;
}

void Error::refresh() {
  what_ = report();
}

void check_failed(const char* condition, const char* file, int line) {
  throw Error("INT001", std::string("internal check failed: ") + condition)
      .where(file, line)
      .fix("this is a bug in train_gpt_v2; please report it with the output of train_gpt_v2 --version");
}

}  // namespace train_gpt_v2
