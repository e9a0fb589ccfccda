#include "train_gpt_v2/data/dataset.h"

#include <gmock/gmock.h>

#include "support/test_files.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;

ModelOptions fixture_model() {
  ModelOptions model;
  model.model_dim = 64;
  model.number_text_tokens = 360;
  model.number_mel_codes = 226;
  model.start_mel_token = 224;
  model.stop_mel_token = 225;
  return model;
}

TEST(Dataset, ReadsTheFixturePairs) {
  const Dataset data({data_path("fixtures/data/train_pairs.jsonl")}, {}, {}, fixture_model());
  ASSERT_EQ(data.size(), 24u);
  EXPECT_EQ(data.speakers().size(), 4u);
  EXPECT_THAT(data.languages(), ::testing::ElementsAre("am"));
  EXPECT_EQ(data.id(0), "spk000_000001__spk000_000000");
  EXPECT_EQ(data.info(0).text_length, 8);
  EXPECT_EQ(data.info(0).code_length, 32);
  Batch batch;
  for (std::uint32_t i = 0; i < data.size(); ++i) {
    data.load(i, batch);
    EXPECT_EQ(batch.text_length(i), data.info(i).text_length);
    EXPECT_EQ(batch.code_length(i), data.info(i).code_length);
    EXPECT_EQ(data.find(data.id(i)), i);
  }
  EXPECT_EQ(batch.count(), 24);
  EXPECT_EQ(batch.condition.size(), 24u * 32 * 64);
  EXPECT_EQ(batch.emo_vec.size(), 24u * 64);
}

}  // namespace
}  // namespace train_gpt_v2
