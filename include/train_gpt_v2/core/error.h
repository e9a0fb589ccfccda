#pragma once
// The one exception type of the program, and how its codes map to exit statuses (interface.md §1).
//
// An Error is thrown where an operation ends; main alone turns it into text and an exit status. Expected outcomes
// (end of data, a skipped step) are values, never Errors. Every code is listed in error_codes.cc with its status and
// the text of `train_gpt_v2 explain CODE`; a code that is not listed there is itself an internal error.

#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

// Process exit statuses; scripts rely on the numbers.
enum class ExitStatus : int {
  kOk = 0,
  kUsage = 64,
  kBadData = 65,
  kMissingInput = 66,
  kInternal = 70,
  kCannotCreate = 73,
  kIo = 74,
  kTemporary = 75,
  kConfig = 78,
  kDiverged = 80,
  kOutOfMemory = 82,
  kHang = 83,
  kSighup = 129,
  kSigint = 130,
  kSigterm = 143,
};

class Error : public std::exception {
 public:
  // `code` must be registered (error_codes.h); `message` says what happened, in one line.
  Error(std::string_view code, std::string message);

  // Builder style, so that a throw reads as one expression.
  Error&& where(std::string_view file, long line = 0, long column = 0) &&;  // "  --> file:line:column"
  Error&& at(std::string place) &&;                                         // "  --> step 120, sample spk0_1"
  Error&& detail(std::string line) &&;                                      // the two values that disagree
  Error&& fix(std::string hint) &&;                                         // "  fix: what to do next"

  const std::string& code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& place() const { return place_; }
  const std::vector<std::string>& details() const { return details_; }
  const std::string& hint() const { return hint_; }
  ExitStatus status() const;

  // The whole report as printed to stderr, without colour, ends with a newline.
  std::string report() const;
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  void refresh();

  std::string code_;
  std::string message_;
  std::string place_;
  std::vector<std::string> details_;
  std::string hint_;
  std::string what_;
};

// For conditions only a programming mistake can break; never for input.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
#define TGV2_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::train_gpt_v2::check_failed(#condition, __FILE__, __LINE__))

}  // namespace train_gpt_v2
