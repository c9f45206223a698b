# simmst._cpu: always built. The kernels of the hot paths are compiled once per instruction set, each time in a
# namespace of its own (SIMMST_ISA), and the one to run is picked when the process starts.
set(SIMMST_CPU_KERNELS)  # csrc/cpu/<stem>.cpp and <stem>_<part>.cpp, compiled for every instruction set
set(SIMMST_CPU_BINDINGS csrc/bindings/cpu.cpp)

foreach(stem prob_sparse_attention spatial_attention cutting_plane)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/${stem}.cpp)
    file(GLOB parts RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS csrc/cpu/${stem}_*.cpp)
    list(APPEND SIMMST_CPU_KERNELS csrc/cpu/${stem}.cpp ${parts})
    list(APPEND SIMMST_CPU_BINDINGS csrc/bindings/cpu_${stem}.cpp)
    string(TOUPPER ${stem} macro)
    list(APPEND SIMMST_CPU_DEFINITIONS SIMMST_HAS_${macro})
  endif()
endforeach()

set(SIMMST_ISAS portable)
set(SIMMST_FLAGS_portable "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND SIMMST_ISAS avx2 avx512 avx512_bf16)
  set(SIMMST_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(SIMMST_FLAGS_avx512 ${SIMMST_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(SIMMST_FLAGS_avx512_bf16 ${SIMMST_FLAGS_avx512} -mavx512bf16)
endif()

pybind11_add_module(_cpu ${SIMMST_CPU_BINDINGS} csrc/cpu/instruction_set.cpp)
target_compile_definitions(_cpu PRIVATE ${SIMMST_CPU_DEFINITIONS})
target_link_libraries(_cpu PRIVATE simmst_flags OpenMP::OpenMP_CXX)
if(SIMMST_CPU_KERNELS)
  foreach(isa ${SIMMST_ISAS})
    add_library(simmst_cpu_${isa} OBJECT ${SIMMST_CPU_KERNELS})
    target_link_libraries(simmst_cpu_${isa} PRIVATE simmst_flags OpenMP::OpenMP_CXX)
    target_compile_definitions(simmst_cpu_${isa} PRIVATE SIMMST_ISA=${isa} SIMMST_ISA_${isa})
    target_compile_options(simmst_cpu_${isa} PRIVATE -O3 -ffp-contract=fast -fno-math-errno -fvisibility=hidden
                           ${SIMMST_FLAGS_${isa}})
    target_link_libraries(_cpu PRIVATE simmst_cpu_${isa})
  endforeach()
endif()
install(TARGETS _cpu LIBRARY DESTINATION simmst)
