// The value tree: order, lookup, sharing, and errors that say where.
#include "train_gpt_v2/io/value.h"

#include <gmock/gmock.h>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string report_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "CKP003");
    return error.report();
  }
  return "no error";
}

TEST(Value, DictsKeepOrderAndReplaceInPlace) {
  Value dict = Value::dict();
  for (int i = 0; i < 1000; ++i) dict.set("key" + std::to_string(i), i).set(i, -i);  // past the size that is indexed
  dict.set("key7", "seven").set(999, "last");
  ASSERT_EQ(dict.size(), 2000u);
  EXPECT_EQ(dict.entries()[14].value.as_string(), "seven");
  EXPECT_EQ(dict.at("key500").as_int(), 500);
  EXPECT_EQ(dict.find(999)->as_string(), "last");
  EXPECT_EQ(dict.find("nothing"), nullptr);
  EXPECT_EQ(dict.find(1000), nullptr);
  EXPECT_EQ(Value(3).find("x"), nullptr);
}

TEST(Value, CopiesAreIndependent) {
  Value a = Value::dict().set("list", Value::list({1, 2}));
  Value b = a;
  b.set("list", 5).set("more", 6);
  EXPECT_EQ(a.size(), 1u);
  EXPECT_EQ(a.at("list").size(), 2u);
  Value list = a.at("list");
  list.push_back(3);
  EXPECT_EQ(a.at("list").size(), 2u);
  EXPECT_EQ(list.size(), 3u);
}

TEST(Value, ErrorsSayWhereAndWhat) {
  const Value dict = Value::dict().set("model", 1).set("optimizer", "x");
  EXPECT_THAT(
      report_of([&] { dict.at("optimiser"); }),
      ::testing::AllOf(HasSubstr("\"optimiser\""), HasSubstr("keys there (2)"), HasSubstr("nearest is \"optimizer\"")));
  EXPECT_THAT(report_of([&] { dict.at("optimizer").as_int("optimizer.step"); }),
              ::testing::AllOf(HasSubstr("optimizer.step"), HasSubstr("expected integer, found string")));
  EXPECT_THAT(report_of([&] { Value(1.5).as_int(); }), HasSubstr("found float"));
  EXPECT_THAT(report_of([&] { Value(true).as_int(); }), HasSubstr("found bool"));
  EXPECT_THAT(report_of([&] { Value().at("x"); }), HasSubstr("found None"));
  EXPECT_THAT(report_of([&] { Value::opaque("numpy.ndarray").as_tensor("a.b"); }), HasSubstr("class numpy.ndarray"));
  EXPECT_THAT(report_of([&] { Value(1).items("groups"); }), HasSubstr("groups"));
  EXPECT_DOUBLE_EQ(Value(3).as_double(), 3.0);
}

TEST(Value, WholeNumbersOfAnySize) {
  EXPECT_TRUE(Value::big_int("9223372036854775807").is_int());
  EXPECT_TRUE(Value::big_int("-9223372036854775808").is_int());
  EXPECT_EQ(Value::big_int("9223372036854775808").big_int_text(), "9223372036854775808");
  EXPECT_EQ(Value(std::uint64_t{18446744073709551615u}).big_int_text(), "18446744073709551615");
  EXPECT_THAT(report_of([] { Value::big_int("9223372036854775808").as_int("x"); }), HasSubstr("64 bits"));
}

TEST(Value, IdenticalComparesBits) {
  EXPECT_TRUE(
      identical(Value(std::numeric_limits<double>::quiet_NaN()), Value(std::numeric_limits<double>::quiet_NaN())));
  EXPECT_FALSE(identical(Value(0.0), Value(-0.0)));
  EXPECT_FALSE(identical(Value(1), Value(1.0)));
  EXPECT_FALSE(identical(Value::dict(), Value::ordered_dict()));
  EXPECT_FALSE(identical(Value::list({1}), Value::tuple({1})));
  EXPECT_FALSE(identical(Value::dict().set("a", 1).set("b", 2), Value::dict().set("b", 2).set("a", 1)));
  Tensor square = Tensor::copy_of(DType::kUInt8, {2, 2}, std::as_bytes(std::span("\1\2\3\4", 4)));
  Tensor turned = Tensor::copy_of(DType::kUInt8, {2, 2}, std::as_bytes(std::span("\1\3\2\4", 4)));
  EXPECT_FALSE(identical(Value(square), Value(turned)));
  std::swap(turned.strides[0], turned.strides[1]);
  EXPECT_TRUE(identical(Value(square), Value(turned)));
}

}  // namespace
}  // namespace train_gpt_v2
