"""The export format of `torch.export`, run by torch."""

# ruff: noqa: PLC0415  (torch is slow to import)
from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.checkpoint import KEY
from msefpn.config import Config
from msefpn.inference.formats.base import Arrays, Graph, fits_half

if TYPE_CHECKING:
    import torch

    from msefpn.models import Detector
    from msefpn.structures import Batch


class PT2:
    """A .pt2 file, see `Exporter`."""

    suffix = ".pt2"
    suffixes: tuple[str, ...] = (suffix,)
    packages: tuple[str, ...] = ()
    executes = True
    precisions: tuple[str, ...] = ("fp32", "fp16")

    def refuse(self, config: Config) -> str:
        """Nothing is refused."""
        return ""

    def write(
        self, detector: Detector, info: str, path: Path, precision: str, samples: Iterable[Batch]
    ) -> None:
        """Write a file, see `Exporter.write`."""
        import torch

        from msefpn.models.graph import trace

        program = trace(detector)
        if precision == "fp16":
            _halve(program)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weights on other devices
            buffer = io.BytesIO()  # torch.export.save on a full disk raises no OSError
            torch.export.save(program, buffer, extra_files={KEY: info})
        path.write_bytes(buffer.getbuffer())

    def read(self, path: Path) -> str | None:
        """Return what a file says of itself."""
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
            return archive.read(names[0]).decode() if names else None

    def open(self, path: Path) -> Graph:
        """Make a file ready to run."""
        import torch
        import torchvision  # noqa: F401  (a loaded graph calls its operators)

        program = torch.export.load(path)
        module, spec = program.module(), program.call_spec.out_spec
        assert spec is not None

        @torch.no_grad()
        def run(feed: Arrays) -> dict[str, torch.Tensor]:
            found: dict[str, torch.Tensor] = module(*map(torch.from_numpy, feed.values()))
            return found

        return Graph(tuple(program.graph_signature.user_inputs), tuple(spec.context), run)


def _halve(program: torch.export.ExportedProgram) -> None:
    """Store large weights in float16, each with a cast to float32 before the operators that read it."""
    import torch
    from torch import nn

    stores: list[dict[str, Any]] = [program.state_dict, program.constants]
    graph = program.graph_module.graph
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in inputs:
        target = targets.get(node.name, "")
        store = next((store for store in stores if target in store), {})
        value = store.get(target)
        if value is None or value.dtype != torch.float32 or not fits_half(value.detach().numpy()):
            continue
        half = value.detach().half()
        store[target] = nn.Parameter(half, requires_grad=False) if isinstance(value, nn.Parameter) else half
        with graph.inserting_after(inputs[-1]):
            cast = graph.call_function(torch.ops.aten.to.dtype, (node, torch.float32))
        cast.meta["val"] = node.meta["val"]
        node.meta["val"] = node.meta["val"].half()
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, own=cast: user is not own)
    program.graph_module.recompile()
