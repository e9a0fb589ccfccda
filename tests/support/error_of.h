#pragma once
// The Error that an operation ends with, to look at its code and at what it tells a user.

#include <gtest/gtest.h>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2::testing {

// Fails the test where `body` ends without an Error.
template <class Body>
Error error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no Error was thrown";
  return Error("INT001", "no Error was thrown");
}

}  // namespace train_gpt_v2::testing
