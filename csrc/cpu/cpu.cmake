# simmst._cpu is always built. The kernels of the operators are compiled once per instruction set, each time in a
# namespace of its own (SIMMST_ISA). Every call picks the set in use. Compiling is most of the installation's time, so
# avx512_bf16 holds only the kernels that multiply with its instructions.
set(SIMMST_CPU_KERNELS_avx512_bf16
  csrc/cpu/prob_sparse_attention_attend.cpp
  csrc/cpu/prob_sparse_attention_backward.cpp
  csrc/cpu/prob_sparse_attention_select.cpp
  csrc/cpu/prob_sparse_attention_tiles.cpp)
set(SIMMST_CPU_KERNELS_avx512
  ${SIMMST_CPU_KERNELS_avx512_bf16}
  csrc/cpu/cutting_plane.cpp
  csrc/cpu/day_attention.cpp
  csrc/cpu/feed_forward.cpp
  csrc/cpu/projection.cpp
  csrc/cpu/spatial_attention.cpp)
set(SIMMST_CPU_KERNELS_avx2 ${SIMMST_CPU_KERNELS_avx512})
set(SIMMST_CPU_KERNELS_portable ${SIMMST_CPU_KERNELS_avx512})
set(SIMMST_CPU_BINDINGS
  csrc/bindings/arrays.cpp
  csrc/bindings/cpu.cpp
  csrc/bindings/cpu_cutting_plane.cpp
  csrc/bindings/cpu_day_attention.cpp
  csrc/bindings/cpu_feed_forward.cpp
  csrc/bindings/cpu_projection.cpp
  csrc/bindings/cpu_prob_sparse_attention.cpp
  csrc/bindings/cpu_spatial_attention.cpp
  csrc/cpu/huge_pages.cpp
  csrc/cpu/instruction_set.cpp)

set(available portable)
set(SIMMST_FLAGS_portable "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND available avx2 avx512 avx512_bf16)
  set(SIMMST_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(SIMMST_FLAGS_avx512 ${SIMMST_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(SIMMST_FLAGS_avx512_bf16 ${SIMMST_FLAGS_avx512} -mavx512bf16)
endif()

set(SIMMST_ISAS "${available}" CACHE STRING "Instruction sets to compile the CPU kernels for (default: all)")
set(SIMMST_SANITIZE OFF CACHE STRING "Build simmst._cpu for tests: ON (AddressSanitizer and UndefinedBehaviorSanitizer), \
thread (ThreadSanitizer), or fuzzer (ON, and counters for libFuzzer); the last two need Clang, whose OpenMP reports its barriers to ThreadSanitizer")
set_property(CACHE SIMMST_SANITIZE PROPERTY STRINGS OFF ON thread fuzzer)
foreach(isa ${SIMMST_ISAS})
  if(NOT isa IN_LIST available)
    message(FATAL_ERROR "SIMMST_ISAS names '${isa}'; on this processor it can name: ${available}")
  endif()
  list(APPEND SIMMST_CPU_DEFINITIONS SIMMST_BUILDS_${isa})
endforeach()
if(NOT SIMMST_ISAS)
  message(FATAL_ERROR "SIMMST_ISAS is empty; it can name: ${available}")
endif()
if("avx512_bf16" IN_LIST SIMMST_ISAS AND NOT "avx512" IN_LIST SIMMST_ISAS)
  message(FATAL_ERROR "SIMMST_ISAS names avx512_bf16, which needs avx512, too")
endif()

set(SIMMST_CPU_OPTIMISATION -O3)
if(SIMMST_SANITIZE)
  set(sanitizers address,undefined)
  if(SIMMST_SANITIZE STREQUAL "thread")
    set(sanitizers thread)
  elseif(SIMMST_SANITIZE STREQUAL "fuzzer")
    set(sanitizers address,undefined,fuzzer-no-link -fno-sanitize=vptr,function)  # atheris does not provide these two
  endif()
  if(SIMMST_SANITIZE MATCHES "^(thread|fuzzer)$" AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "SIMMST_SANITIZE=${SIMMST_SANITIZE} needs Clang, not ${CMAKE_CXX_COMPILER_ID}; set CXX=clang++")
  endif()
  set(SIMMST_CPU_OPTIMISATION -O1 -g1 -fno-omit-frame-pointer -fsanitize=${sanitizers} -fno-sanitize-recover=undefined)
endif()

pybind11_add_module(_cpu ${SIMMST_CPU_BINDINGS})
target_compile_definitions(_cpu PRIVATE ${SIMMST_CPU_DEFINITIONS})
target_link_libraries(_cpu PRIVATE simmst_flags OpenMP::OpenMP_CXX)
if(SIMMST_SANITIZE)
  target_compile_options(_cpu PRIVATE ${SIMMST_CPU_OPTIMISATION})
  target_link_options(_cpu PRIVATE -fsanitize=${sanitizers})
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND NOT SIMMST_SANITIZE STREQUAL "fuzzer")  # the fuzzer brings its own runtime
    target_link_options(_cpu PRIVATE -shared-libsan)
  endif()
endif()
foreach(isa ${SIMMST_ISAS})
  add_library(simmst_cpu_${isa} OBJECT ${SIMMST_CPU_KERNELS_${isa}})
  target_link_libraries(simmst_cpu_${isa} PRIVATE simmst_flags OpenMP::OpenMP_CXX)
  target_compile_definitions(simmst_cpu_${isa} PRIVATE SIMMST_ISA=${isa} SIMMST_ISA_${isa} ${SIMMST_CPU_DEFINITIONS})
  target_compile_options(simmst_cpu_${isa} PRIVATE ${SIMMST_CPU_OPTIMISATION} -ffp-contract=fast -fno-math-errno
                         -fvisibility=hidden ${SIMMST_FLAGS_${isa}})
  target_link_libraries(_cpu PRIVATE simmst_cpu_${isa})
endforeach()
install(TARGETS _cpu LIBRARY DESTINATION simmst)
