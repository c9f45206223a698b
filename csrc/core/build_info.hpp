// A compiled module's description of its own build.
#pragma once

#include <string>

namespace simmst {

inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

inline std::string version() { return SIMMST_VERSION; }

}  // namespace simmst
