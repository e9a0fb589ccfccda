#include "train_gpt_v2/app/explain_command.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/core/error_codes.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

TEST(Explain, EveryCodeHasItsTextAndStatus) {
  for (const ErrorCode& code : error_codes()) {
    const std::string text = explain_text(code.code);
    EXPECT_TRUE(starts_with(text, concat(code.code, ": ", code.title, "\n"))) << text;
    EXPECT_NE(text.find(concat("exit status ", static_cast<int>(code.status), ":")), std::string::npos) << text;
    EXPECT_GE(code.explain.size(), 40u) << code.code << " needs a sentence on what to do";
    for (const std::string& line : split(text, '\n')) EXPECT_LE(line.size(), 110u);
  }
}

TEST(Explain, NoCodeIsTakenTwice) {
  std::set<std::string_view> codes;
  for (const ErrorCode& code : error_codes()) EXPECT_TRUE(codes.insert(code.code).second) << code.code;
}

TEST(Explain, TakesACodeAsItWasPrinted) {
  const std::string text = explain_text("IO005");
  EXPECT_EQ(explain_text("io005"), text);
  EXPECT_EQ(explain_text(" error[IO005]: another process"), text);
}

TEST(Explain, WithoutACodeListsAll) {
  const std::string text = explain_text("");
  for (const ErrorCode& code : error_codes()) EXPECT_NE(text.find(code.code), std::string::npos);
  const auto json = nlohmann::json::parse(explain_text("", true));
  ASSERT_EQ(json.size(), error_codes().size());
  EXPECT_EQ(json[0]["code"], error_codes()[0].code);
}

TEST(Explain, JsonHasFourFields) {
  const auto json = nlohmann::json::parse(explain_text("mem001", true));
  EXPECT_EQ(json["code"], "MEM001");
  EXPECT_EQ(json["status"], 82);
  EXPECT_EQ(json.size(), 4u);
}

TEST(Explain, AnUnknownCodeNamesTheNearest) {
  for (const auto& [asked, meant] : {std::pair{"MEN001", "MEM001"}, {"CFG01", "CFG001"}, {"ARG0001", "ARG001"}}) {
    try {
      explain_text(asked);
      FAIL() << asked;
    } catch (const Error& failure) {
      EXPECT_EQ(failure.status(), ExitStatus::kUsage);
      EXPECT_NE(failure.hint().find(meant), std::string::npos) << failure.report();
    }
  }
  try {
    explain_text(std::string(100000, 'A'));
    FAIL();
  } catch (const Error& failure) {
    EXPECT_LT(failure.report().size(), 300u);
  }
}

TEST(Explain, EveryStatusOfTheProgramIsNamed) {
  for (const int status : {0, 64, 65, 66, 70, 73, 74, 75, 78, 80, 82, 83, 129, 130, 143}) {
    EXPECT_TRUE(starts_with(exit_status_text(static_cast<ExitStatus>(status)), std::to_string(status) + ": "));
    EXPECT_EQ(exit_status_text(static_cast<ExitStatus>(status)).find("not a status"), std::string::npos);
  }
}

}  // namespace
}  // namespace train_gpt_v2
