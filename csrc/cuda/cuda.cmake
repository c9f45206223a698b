# simmst._cuda: built where a CUDA compiler of at least 12.0 is found; links the CUDA runtime statically.
include(CheckLanguage)
if(NOT CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES $ENV{CUDAARCHS})
endif()
check_language(CUDA)

set(SIMMST_NO_CUDA_REASON "")
if(NOT CMAKE_CUDA_COMPILER)
  set(SIMMST_NO_CUDA_REASON "no CUDA compiler (nvcc) was found; put it on PATH or set CUDACXX")
else()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real)
    set(SIMMST_DEFAULT_ARCHITECTURES TRUE)
  endif()
  enable_language(CUDA)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
    set(SIMMST_NO_CUDA_REASON "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old; version 12.0 or newer is needed")
  endif()
endif()

if(SIMMST_NO_CUDA_REASON)
  if(SIMMST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SIMMST_CUDA=ON, but ${SIMMST_NO_CUDA_REASON}")
  endif()
  message(STATUS "simmst._cuda is left out: ${SIMMST_NO_CUDA_REASON}")
  return()
endif()

if(SIMMST_DEFAULT_ARCHITECTURES)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
endif()

if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc 12 has C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  list(APPEND CMAKE_CUDA_COMPILE_FEATURES cuda_std_20)
endif()

find_package(CUDAToolkit REQUIRED)
list(JOIN CMAKE_CUDA_ARCHITECTURES "," SIMMST_CUDA_ARCHITECTURES)
# Apart from the bindings, so that another Python does not compile them anew.
add_library(simmst_cuda_kernels OBJECT ${SIMMST_CUDA_KERNELS})
set_target_properties(simmst_cuda_kernels PROPERTIES CUDA_VISIBILITY_PRESET hidden)
target_link_libraries(simmst_cuda_kernels PRIVATE simmst_flags)
target_compile_options(simmst_cuda_kernels PRIVATE -Xcompiler=-Wall,-Wextra)
if(SIMMST_WERROR)
  target_compile_options(simmst_cuda_kernels PRIVATE "SHELL:-Werror all-warnings")
endif()

pybind11_add_module(_cuda ${SIMMST_CUDA_BINDINGS} csrc/cuda/launch.cpp csrc/cuda/runtime_nvcc.cpp)
target_compile_definitions(_cuda PRIVATE
  ${SIMMST_CUDA_DEFINITIONS}
  SIMMST_CUDA_COMPILER="${CMAKE_CUDA_COMPILER_VERSION}"
  SIMMST_CUDA_ARCHITECTURES="${SIMMST_CUDA_ARCHITECTURES}")
target_link_libraries(_cuda PRIVATE simmst_flags simmst_cuda_kernels CUDA::cudart_static)
install(TARGETS _cuda LIBRARY DESTINATION simmst)
