"""Procedural cities for ray tracing: blocks of buildings on a street grid, as a mesh."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from simmst.simulation.services import check_range

_RANGES: dict[str, tuple[float, float, str]] = {
    "block_m": (30.0, 1000.0, "m"),
    "built_share": (0.0, 1.0, "share of the blocks"),
    "height_m": (2.0, 300.0, "m"),
    "height_log_std": (0.0, 2.0, "standard deviation of the log"),
    "least_width": (0.1, 0.95, "share of the block"),
    "greatest_width": (0.1, 0.95, "share of the block"),
}
# The ten triangles of a box without its floor, as numbers of its corners: bottom 0-3, top 4-7, each counter-clockwise.
_BOX = np.array(
    [(4, 5, 6), (4, 6, 7), (0, 1, 5), (0, 5, 4), (1, 2, 6), (1, 6, 5), (2, 3, 7), (2, 7, 6), (3, 0, 4), (3, 4, 7)]
)
_CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
_MATERIALS = {"buildings": "concrete", "ground": "medium_dry_ground"}


@dataclass(frozen=True)
class BuiltEnvironment:
    """The buildings of a procedural city: one box in each built block of a square street grid.

    Attributes:
        block_m: distance between streets.
        built_share: share of the blocks that have a building; the others are squares and parks.
        height_m: median height of the buildings.
        height_log_std: spread of the log height.
        least_width: shortest side of a building, as a share of the block.
        greatest_width: longest side.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> buildings = BuiltEnvironment().build(500.0, np.random.default_rng(0))
        >>> vertices, triangles = buildings.mesh()
        >>> len(vertices) == 8 * len(buildings.height_m), bool(triangles.max() < len(vertices))
        (True, True)
    """

    block_m: float = 138.0
    built_share: float = 0.75
    height_m: float = 18.0
    height_log_std: float = 0.5
    least_width: float = 0.45
    greatest_width: float = 0.8

    def __post_init__(self) -> None:
        for field in fields(self):
            check_range(f"BuiltEnvironment.{field.name}", getattr(self, field.name), *_RANGES[field.name])
        check_range(
            "BuiltEnvironment.greatest_width", self.greatest_width, self.least_width, 0.95, "share of the block"
        )

    def build(self, extent_m: float, rng: np.random.Generator) -> Buildings:
        """Draw the buildings of a square city with its south-west corner at (0, 0).

        Args:
            extent_m: edge of the square.
            rng: source of randomness.
        """
        blocks = max(int(extent_m // self.block_m), 1)
        pitch = extent_m / blocks
        built = np.argwhere(rng.random((blocks, blocks)) < self.built_share)
        half = pitch * rng.uniform(self.least_width, self.greatest_width, (len(built), 2)) / 2
        height = np.clip(self.height_m * np.exp(self.height_log_std * rng.standard_normal(len(built))), 3.0, 200.0)
        roof = np.zeros((blocks, blocks))
        roof[built[:, 0], built[:, 1]] = height
        return Buildings((built + 0.5) * pitch, half, height, pitch, roof)


@dataclass(frozen=True, eq=False)
class Buildings:
    """Boxes in the blocks of a square city.

    Attributes:
        centre_m: float ``(n, 2)``, x east and y north.
        half_m: float ``(n, 2)``, half the side lengths.
        height_m: float ``(n,)``.
        pitch_m: edge of a block.
        roof_m: float ``(blocks, blocks)`` by x and y, height of a block's building, 0 without one.
    """

    centre_m: np.ndarray
    half_m: np.ndarray
    height_m: np.ndarray
    pitch_m: float
    roof_m: np.ndarray

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Return vertices, float32 ``(8 n, 3)`` in metres, and triangles, int32 ``(10 n, 3)``, facing outwards."""
        vertices = np.zeros((len(self.height_m), 2, 4, 3), np.float32)
        vertices[..., :2] = (self.centre_m[:, None] + _CORNERS * self.half_m[:, None])[:, None]
        vertices[:, 1, :, 2] = self.height_m[:, None]
        triangles = _BOX + 8 * np.arange(len(self.height_m))[:, None, None]
        return vertices.reshape(-1, 3), triangles.reshape(-1, 3).astype(np.int32)

    def roof_at(self, point_m: np.ndarray) -> np.ndarray:
        """Return the height of the building in each point's block ``(..., 2)``; 0 without one or outside the city."""
        block = np.floor(point_m / self.pitch_m).astype(np.int64)
        inside = ((block >= 0) & (block < len(self.roof_m))).all(-1)
        x, y = np.moveaxis(np.clip(block, 0, len(self.roof_m) - 1), -1, 0)
        return np.where(inside, self.roof_m[x, y], 0.0)


def write_scene(folder: Path, buildings: Buildings) -> Path:
    """Write a scene file with its meshes: concrete buildings on dry ground.

    Args:
        folder: an existing folder.
        buildings: buildings of the city.

    Returns:
        The scene file, in the format that Mitsuba and Sionna RT read.
    """
    corner = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], np.float32) * np.float32(
        buildings.pitch_m * len(buildings.roof_m)
    )
    meshes = {"ground": (corner, np.array([(0, 1, 2), (0, 2, 3)], np.int32))}
    vertices, triangles = buildings.mesh()
    if len(triangles):
        meshes["buildings"] = vertices, triangles
    parts = []
    for name, (points, faces) in meshes.items():
        write_ply(folder / f"{name}.ply", points, faces)
        material = f'<string name="type" value="{_MATERIALS[name]}"/><float name="thickness" value="0.3"/>'
        parts.append(f'<bsdf type="itu-radio-material" id="mat-{_MATERIALS[name]}">{material}</bsdf>')
        mesh = f'<string name="filename" value="{name}.ply"/><boolean name="face_normals" value="true"/>'
        parts.append(f'<shape type="ply" id="{name}">{mesh}<ref id="mat-{_MATERIALS[name]}" name="bsdf"/></shape>')
    scene = folder / "scene.xml"
    scene.write_text('<scene version="2.1.0">' + "\n".join(parts) + "</scene>\n", encoding="utf-8")
    return scene


def write_ply(path: Path, vertices: np.ndarray, triangles: np.ndarray) -> None:
    r"""Write a mesh as a binary PLY file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.ply"
        >>> write_ply(path, np.zeros((3, 3), np.float32), np.array([(0, 1, 2)], np.int32))
        >>> path.read_bytes()[:4]
        b'ply\n'
    """
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {len(triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(triangles), dtype=[("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, triangles
    path.write_bytes(header.encode("ascii") + vertices.astype("<f4").tobytes() + faces.tobytes())
