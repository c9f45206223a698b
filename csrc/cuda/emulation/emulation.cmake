# simmst._cuda_emulated: the same kernels and bindings, compiled by the C++ compiler without a CUDA toolkit, and run thread
# by thread on the CPU. For tests only.
set(SIMMST_EMULATED_SOURCES)
foreach(source ${SIMMST_CUDA_KERNELS} ${SIMMST_CUDA_KERNELS_BY_ENTRY} ${SIMMST_CUDA_CHECK_KERNELS})
  # CMake compiles a listed .cu as CUDA, so here a C++ source includes it.
  get_filename_component(name ${source} NAME_WE)
  set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
  string(REPLACE "csrc/" "" path ${source})
  file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${path}\"\n")
  list(APPEND SIMMST_EMULATED_SOURCES ${wrapper})
endforeach()

add_library(simmst_emulated_kernels OBJECT ${SIMMST_EMULATED_SOURCES} ${SIMMST_CUDA_HOST}
  csrc/cuda/emulation/fiber.cpp csrc/cuda/emulation/machine.cpp)
target_compile_definitions(simmst_emulated_kernels PRIVATE SIMMST_EMULATED)
target_compile_options(simmst_emulated_kernels PRIVATE -fvisibility=hidden)
target_link_libraries(simmst_emulated_kernels PRIVATE simmst_flags)
# NO_EXTRAS, because link-time optimisation would take longer than the tests gain from it.
pybind11_add_module(_cuda_emulated NO_EXTRAS ${SIMMST_CUDA_BINDINGS} ${SIMMST_CUDA_CHECK_BINDINGS})
target_compile_definitions(_cuda_emulated PRIVATE SIMMST_EMULATED)
target_link_libraries(_cuda_emulated PRIVATE simmst_flags simmst_emulated_kernels)
if(SIMMST_SANITIZE)
  target_compile_options(simmst_emulated_kernels PRIVATE ${SIMMST_CPU_OPTIMISATION})
  target_compile_options(_cuda_emulated PRIVATE ${SIMMST_CPU_OPTIMISATION})
  target_link_options(_cuda_emulated PRIVATE -fsanitize=address,undefined)
endif()
install(TARGETS _cuda_emulated LIBRARY DESTINATION simmst)
