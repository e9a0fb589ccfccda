#pragma once
// What happens when somebody cuts a file short that is mapped (core/filesystem.h: MappedFile).
//
// Reading pages that are no longer there is a SIGBUS. A handler, installed with the first mapping, ends the process
// with error IO008, the file's name and status 74. Files that are read throughout a run, whose loss must not cost the
// training state, are marked instead: their lost pages read as zeros, and check_lost_pages() says so. Threads: all
// functions may be called from any thread.

#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {

void mark_lost_pages(const MappedFile& file);

// IO008 when pages of a marked file were lost: what was read before this call may have been zeros.
void check_lost_pages(const MappedFile& file);

// The same, and asks the file system: a cut within the last page loses no page, but what lay behind it reads as zeros.
void check_not_cut(const MappedFile& file);

}  // namespace train_gpt_v2
