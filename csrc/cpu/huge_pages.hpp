// Results of many megabytes lie in pages that the system hands out one by one, 4 KiB at a time, as they are first
// written: on a virtual machine that takes longer than the writing.
#pragma once

#include <cstdint>

namespace simmst::cpu {

// Asks for pages of 2 MiB under memory that is about to be written from end to end, as numpy does for its large arrays.
// Below 4 MiB, and where the system has no such pages, it does nothing.
void prefer_huge_pages(void* data, std::int64_t bytes);

}  // namespace simmst::cpu
