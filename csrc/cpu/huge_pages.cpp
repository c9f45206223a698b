#include "cpu/huge_pages.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace simmst::cpu {

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{1} << 21;
  if (bytes < 2 * static_cast<std::int64_t>(kPage)) return;
  const auto start = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (start + kPage - 1) / kPage * kPage;
  const std::uintptr_t last = (start + static_cast<std::uintptr_t>(bytes)) / kPage * kPage;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // only advice: a failure is no error
#endif
}

}  // namespace simmst::cpu
