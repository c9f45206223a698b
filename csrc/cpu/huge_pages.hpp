// Large pages for results of many megabytes. Otherwise the system hands out pages of 4 KiB one by one as they are first
// written, and on a virtual machine that takes longer than the writing itself.
#pragma once

#include <cstdint>

namespace simmst::cpu {

// Requests pages of 2 MiB for memory that is about to be written completely, as numpy does for its large arrays. Does
// nothing below 4 MiB, or where the system has no such pages.
void prefer_huge_pages(void* data, std::int64_t bytes);

}  // namespace simmst::cpu
