// Functions for tests; no installation needs them. They run the kernels' primitives one by one, and show how the
// kernels divide their work. Part of simmst._cuda_emulated; for a GPU, a module of its own, simmst._cuda_checks.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "bindings/arrays.hpp"
#include "core/batched_matrices.hpp"
#include "core/prob_sparse_schedule.hpp"
#include "cuda/checks/device_check.hpp"
#include "cuda/cutting_plane.hpp"
#if defined(SIMMST_EMULATED)
#include "cuda/emulation/machine.hpp"
#endif

namespace py = pybind11;
using namespace simmst;
using namespace simmst::cuda;
using std::int64_t;

namespace {

void run_check(const std::string& name, const py::tuple& in, const py::tuple& out, int device, std::uintptr_t stream) {
  const Queue queue{device, stream};
  const Arrays read = Arrays::on_device(device);
  const Array input = read("in", in, {DataType::kFloat32}), output = read("out", out, {DataType::kInt32});
  if (input.rank != 1) input.refuse("must have one dimension");
  require_contiguous(input);
  require_contiguous(output);
  require_shape(output, {device_check_outputs(name, input.shape[0])});
  const DeviceGuard guard(device);
  device_check(name, input.as<float>(), output.as<std::uint32_t>(), input.shape[0], queue);
}

// ---- how the work is divided: plain arithmetic that needs no device

namespace schedule = simmst::prob_sparse;

py::tuple spans(int64_t keys, int64_t queries, int64_t entries, int64_t blocks) {
  const schedule::Spans found = schedule::spans_of(keys, queries, entries, blocks);
  return py::make_tuple(found.size, found.keys, found.rows);
}

py::tuple key_tiles(int64_t keys, int64_t samples, int64_t row_bytes, int64_t block_bytes, int64_t running_bytes) {
  constexpr const char* names[] = {"whole", "tiles", "straight"};
  const schedule::KeyTiles tiles = schedule::key_tiles(keys, samples, row_bytes, block_bytes, running_bytes);
  return py::make_tuple(names[static_cast<int>(tiles.gather)], tiles.size, tiles.count);
}

py::dict workspaces(int64_t batch, int64_t queries, int64_t keys, int64_t samples, int64_t selected, int64_t width,
                    int64_t row_bytes, int64_t block_bytes, int64_t blocks) {
  const schedule::Spans cut = schedule::spans_of(keys, queries, batch, blocks);
  py::dict bytes;
  bytes["measure"] =
      schedule::measure_workspace(queries, samples, schedule::key_tiles(keys, samples, row_bytes, block_bytes, 0));
  bytes["attend"] = schedule::attend_workspace(batch, cut.keys, schedule::attend_rows(selected, queries), width);
  bytes["backward"] = schedule::backward_workspace(batch, cut, selected, width);
  return bytes;
}

py::tuple list_begin(int64_t group, int64_t samples, int64_t tiles) {
  return py::make_tuple(schedule::first_entry(group, samples, tiles), schedule::first_offset(group, tiles));
}

// The bytes before a list entry's row, and its query.
py::tuple list_entry(int64_t row, int64_t query, std::uint32_t row_bytes) {
  const std::uint32_t entry = schedule::list_entry(row, query);
  return py::make_tuple(schedule::entry_bytes(entry, row_bytes), schedule::entry_query(entry));
}

// A radix search for the `wanted`-th largest, with counts made one value at a time.
std::uint32_t radix_search(const std::vector<std::uint32_t>& ordered, int64_t wanted) {
  schedule::RadixState state{0, wanted};
  for (int pass = 0; pass < schedule::kPasses; ++pass) {
    std::vector<int64_t> bins(schedule::kDigits);
    for (const std::uint32_t value : ordered)
      if (schedule::shares_prefix(value, state.prefix, pass))
        ++bins[static_cast<std::size_t>(schedule::digit(value, pass))];
    int found = schedule::kDigits - 1;
    int64_t above = 0;
    for (; above + bins[static_cast<std::size_t>(found)] < state.wanted; --found)
      above += bins[static_cast<std::size_t>(found)];
    state = schedule::narrowed(state, pass, found, above);
  }
  return state.prefix;
}

int64_t offset_of_entry(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t index) {
  simmst::Batch batch;
  simmst::Matrices matrices;
  if (sizes.size() != strides.size() || sizes.size() > simmst::kMaxBatchDims)
    throw py::value_error("sizes and strides must be of one length, at most " + std::to_string(simmst::kMaxBatchDims));
  batch.dims = static_cast<int>(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    batch.count *= batch.size[i] = sizes[i];
    matrices.batch_stride[i] = strides[i];
  }
  return simmst::entry_offset(matrices, batch, index);
}

py::dict cutting_plane_schedule(int type, std::int64_t problems, std::int64_t planes, std::int64_t size,
                                std::int64_t multiprocessors) {
  const simmst::PlaneSchedule made = simmst::schedule_planes(
      problems, planes, size, pack_columns(format_of(static_cast<DataType>(type))), multiprocessors);
  py::dict result;
  result["tile_columns"] = made.tile_columns;
  result["tiles"] = made.tiles;
  result["blocks"] = made.blocks;
  result["row_blocks"] = made.row_blocks;
  result["rows_per_warp"] = made.rows_per_warp;
  return result;
}

}  // namespace

void bind_checks(py::module_& module) {
  module.def("device_check", &run_check, "Run the check of that name; in is float32, out int32.");
  module.def("device_check_outputs", &device_check_outputs, "Words that a check writes.");
#if defined(SIMMST_EMULATED)
  module.def(
      "device_misuse",
      [](const std::string& name, const py::tuple& out) {
        const Array output = Arrays::on_device(-1)("out", out, {DataType::kInt32});
        require_shape(output, {64});
        device_misuse(name, output.as<std::uint32_t>());
      },
      "Run a kernel with the mistake of that name.");
  module.def("only_note_launches", &emulation::only_note, "While on, launches are checked and noted; nothing runs.");
  module.def("take_noted_launches", &emulation::take_noted, "The kernels noted since the last call.");
#endif
  module.def("prob_sparse_padded_width", &schedule::padded_width, "Width of the kernels for so many columns, or 0.");
  module.def("prob_sparse_spans", &spans, "(rows of a span, spans of keys, spans of queries).");
  module.def("prob_sparse_chunk", &schedule::chunk_queries, "Queries that a block measures.");
  module.def("prob_sparse_key_tiles", &key_tiles, "(how keys are gathered, keys of a tile, tiles).");
  module.def("prob_sparse_workspaces", &workspaces, "Bytes of workspace by call.");
  module.def("prob_sparse_list_begin", &list_begin, "First entry and first offset of a group's list of samples.");
  module.def("prob_sparse_list_entry", &list_entry, "A sample in a list: bytes before its row, and its query.");
  module.def("prob_sparse_list_place", &schedule::list_place, "Where a row of a list lies in it.");
  module.def("prob_sparse_group_turns", &schedule::group_turns, "Turns of 16 rows in a group's list, at most.");
  module.def("prob_sparse_radix_search", &radix_search, "The wanted-th largest of some words.");
  module.def("prob_sparse_entry_offset", &offset_of_entry, "Where a batch entry begins, in elements.");
  module.def("cutting_plane_schedule", &cutting_plane_schedule,
             "How a pass over planes is divided on so many multiprocessors.");
}

#if !defined(SIMMST_EMULATED)
PYBIND11_MODULE(_cuda_checks, module) {
  module.doc() = "Tests of simmst's CUDA kernels.";
  bind_checks(module);
}
#endif
