#include "train_gpt_v2/model/autocast.h"

#include <ATen/autocast_mode.h>

namespace train_gpt_v2 {

namespace autocast = at::autocast;

AutocastScope::AutocastScope(c10::DeviceType device, c10::ScalarType compute)
    : device_(device),
      was_enabled_(autocast::is_autocast_enabled(device)),
      was_type_(autocast::get_autocast_dtype(device)) {
  const bool reduced = compute == c10::kBFloat16 || compute == c10::kHalf;
  autocast::increment_nesting();
  autocast::set_autocast_enabled(device_, reduced);
  if (reduced) autocast::set_autocast_dtype(device_, compute);
}

AutocastScope::~AutocastScope() {
  if (autocast::decrement_nesting() == 0) autocast::clear_cache();
  autocast::set_autocast_dtype(device_, was_type_);
  autocast::set_autocast_enabled(device_, was_enabled_);
}

c10::ScalarType active_compute_type(c10::DeviceType device) {
  return autocast::is_autocast_enabled(device) ? autocast::get_autocast_dtype(device) : c10::kFloat;
}

}  // namespace train_gpt_v2
