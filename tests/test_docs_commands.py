"""Every command and every piece of Python in the README and in the pages, as it is written, but shorter.

All run in one folder that holds what the texts name, page by page from top to bottom. A command that differs
from an earlier one only in the values of its options is not run again: its names are looked up, and where it
trains, a copy of one run stands in for what it would write. What is trained has narrow heads.
"""

import dataclasses
import functools
import inspect
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import msefpn
from msefpn import plugins
from msefpn.ablation.rows import row_configs
from msefpn.cli import COMMANDS, command_parser, main
from msefpn.config import Config, load_recipe, parse_settings
from msefpn.data import datasets, synthetic
from msefpn.models import check_neck_name
from msefpn.names import check_rows
from msefpn.plugins import known
from msefpn.reporting import report
from msefpn.training import plan
from tests import ROOT
from tests.importing.configs import write_configs
from tests.models.importers.layouts import CLASSES, as_detectron2, as_mmdetection, make

PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
]

SHORT: dict[str, dict[str, Any]] = {
    "train": {"epochs": 1, "size": 64, "batch": 4, "workers": 0, "device": "cpu"},
    "evaluate": {"workers": 0},
}
"""Options that replace a command's own, so that it takes a second or two."""
BACKBONE = {"init": "test_resnet.safetensors", "backbone": "test_resnet"}
SMALL: dict[str, dict[str, Any]] = {"train": BACKBONE}
"""Options that are given where the command does not name them."""
PARSED_ONLY = {
    r"--devices [2-9]": "needs several GPUs",
    r"^msefpn export": "traces for half a minute; tests/exporting",
    r"^msefpn demo": "serves until it is stopped; tests/web",
    r"^msefpn (ablate|cost)": "tests/ablation",
    r"detector\.onnx": "reads an exported file",
    r"_resnet50_fpn|--recipe finetune|(hf|s3)://": "needs the network; test_pretrained.py, test_remote.py",
    r"--ray|predict .*--jobs [2-9]": "starts Ray or processes; tests/prediction/shards",
    r"bccd/|runs/cells|(--data|check) coco|coco/": "needs photographs that are not in the repository",
}
"""Commands that are not run here, and why, or what runs them; their options and names are looked up."""
NOT_RUN = {
    r"make (quickstart|test|docs)": "installs; .ci/run runs make test and make docs",
    r"(\. |python3 -m venv |pip install )": "installs",
    r"\.venv/bin/(pytest tests/|python -m tests\.)": "is a test itself",
    r"trtexec ": "needs TensorRT and a GPU",
}
"""Commands other than msefpn, and why they are not run."""
OTHERS = ("fiftyone", "trackers")
"""Packages of no extra: Python that imports one is compiled, and run where it is installed."""
LONG = "docs/results/"
"""Pages of measurements that took hours: their commands are looked up, not run."""
ROWS = {
    "bifpn_norm_momentum.yaml": "neck: bifpn\nneck_options: {norm_momentum: 0.1}\n",
    "mse_fpn_lean.yaml": "neck: mse_fpn\nneck_options: {preset: lean}\n",
    "trial.yaml": "neck: trial\nneck_options: {context: true}\n",
}
"""Files that the pages of measurements describe in a comment."""

PLAIN = {item.name for item in dataclasses.fields(Config) if not item.metadata["plugin"]} - {"init"} | {"set"}
"""Options of a training that name nothing."""


class Block(NamedTuple):
    """A fenced piece of a page."""

    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced pieces of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def commands(block: Block) -> Iterator[str]:
    """The commands of a piece of shell, each on one line, without comments; a loop's once for each value."""
    lines = re.sub(r"\\\n\s*", "", block.text)
    for loop in re.finditer(r"^for (\w+) in (.*); do\n((?:.*\n)*?)done$", lines, re.MULTILINE):
        bodies = [loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()]
        lines = lines.replace(loop[0], "".join(bodies))
    for line in lines.splitlines():
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        if words:
            yield shlex.join(word for word in words if word != "...")


@dataclass
class Sandbox:
    """The folder where the commands run, and those that have run there."""

    folder: Path
    done: set[tuple[Any, ...]] = field(default_factory=set)

    def is_new(self, name: str, given: dict[str, Any]) -> bool:
        """Whether no command with these options has run; plug-ins are compared by value.

        Of a training, values of the configuration that name nothing count for nothing: they are looked up.
        """
        own = [key for key, value in given.items() if callable(value) or hasattr(value, "classes")]
        if "file" in given:  # what is imported from it depends on its kind
            own.append(Path(given["file"]).suffix)
        options = given.keys() - (PLAIN if name == "train" else set())
        key = (name, frozenset(options), *given.get("plugin", ()), *own)
        if key in self.done:
            return False
        self.done.add(key)
        return True

    def stand_in(self, given: dict[str, Any]) -> Path:
        """Put a copy of a run where a training that is not run would write."""
        out = self.folder / given["out"]
        if out != self.folder / "runs/mine":
            shutil.copytree(self.folder / "runs/fpn", out)
        return Path(given["out"])

    def clear(self, given: dict[str, Any]) -> None:
        """Remove what another page's command has written there, unless this one continues it."""
        if given.get("resume") or given.get("out", "runs/mine") == "runs/mine":
            return
        out = self.folder / given["out"]
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)


def label(folder: Path, data: Path) -> None:
    """Make a folder in LabelMe's format: photos of five patients, without splits."""
    folder.mkdir()
    content = json.loads((data / "train.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    for number, image in enumerate(content["images"]):
        photo = folder / f"p{number % 5}_{number:03}.jpg"
        shutil.copy(data / "train" / image["file_name"], photo)
        boxes = [
            (names[item["category_id"]], item["bbox"])
            for item in content["annotations"]
            if item["image_id"] == image["id"]
        ]
        shapes = [
            {"label": name, "points": [[x, y], [x + width, y + height]], "shape_type": "rectangle"}
            for name, (x, y, width, height) in boxes
        ]
        about = {"imagePath": photo.name, "imageWidth": image["width"], "imageHeight": image["height"]}
        photo.with_suffix(".json").write_text(json.dumps(about | {"shapes": shapes}), encoding="utf-8")


def tabulate(folder: Path, data: Path) -> None:
    """Make a folder in the format of examples/plugins/table.py."""
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text(encoding="utf-8"))
        shutil.copytree(data / split, folder / split)
        names = {item["id"]: item["file_name"] for item in content["images"]}
        lines = ["file,class,left,top,right,bottom"]
        for item in content["annotations"]:
            x, y, width, height = item["bbox"]
            lines.append(f"{split}/{names[item['image_id']]},shape,{x},{y},{x + width},{y + height}")
        (folder / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")


def describe(folder: Path, data: Path) -> None:
    """Make a folder with metadata.jsonl, as Hugging Face's `imagefolder` reads it."""
    shutil.copytree(data / "train", folder)
    content = json.loads((data / "train.json").read_text(encoding="utf-8"))
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for image in content["images"]:
            boxes = [item["bbox"] for item in content["annotations"] if item["image_id"] == image["id"]]
            objects = {"bbox": boxes, "categories": [i % 2 for i in range(len(boxes))]}
            file.write(json.dumps({"file_name": image["file_name"], "objects": objects}) + "\n")


def film(path: Path, photo: Path) -> None:
    """Make a video of one photo, six times."""
    with av.open(str(path), "w") as container, Image.open(photo) as image:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image.resize((96, 64))))))
        container.mux(stream.encode())


def narrow(name: str, **given: Any) -> Config:
    """A recipe whose heads on regions are narrow, for most of the time would go into their weights."""
    config = load_recipe(name, **given)
    if config.detector not in ("cascade_rcnn", "fast_rcnn", "faster_rcnn", "mask_rcnn"):
        return config
    roi = config.detector_options.get("roi", {}) | {"hidden": 32}
    return dataclasses.replace(config, detector_options=config.detector_options | {"roi": roi})


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Prepare what the texts name: the user's data, photos and plug-ins, and a run."""
    for kind in plugins.KINDS:
        plugins.known(kind)
    before = {kind: dict(table) for kind, table in plugins._TABLES.items()}
    folder = tmp_path_factory.mktemp("docs")
    synthetic.draw_builtin_set(folder / "my_data", train=4, val=2, seed=0, size=96)
    shutil.copytree(folder / "my_data" / "val", folder / "photos")
    shutil.copytree(folder / "my_data", folder / "runs" / "builtin-data")
    synthetic.draw_builtin_set(folder / "more", train=10, val=1, seed=1, size=96)
    film(folder / "street.mp4", folder / "photos" / "000001.jpg")
    shutil.copy(folder / "photos" / "000001.jpg", folder / "photo.jpg")
    label(folder / "labelled", folder / "more")
    tabulate(folder / "my_tables", folder / "my_data")
    describe(folder / "hugging_face", folder / "more")
    for file in (ROOT / "examples" / "plugins").glob("*.py"):
        shutil.copy(file, folder)
    write_configs(folder, version=3)
    content = {"meta": {"CLASSES": CLASSES}, "state_dict": as_mmdetection(make("faster_rcnn"))}
    torch.save(content, folder / "epoch_12.pth")
    torch.save({"model": as_detectron2(make("faster_rcnn", classes=CLASSES[:2]))}, folder / "model_final.pkl")
    for name, text in ROWS.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    weights = timm.create_model("test_resnet").state_dict()
    save_file(weights, folder / BACKBONE["init"])  # as if from timm's hub
    given = SHORT["train"] | BACKBONE | {"init": folder / BACKBONE["init"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "load_recipe", narrow)
        msefpn.train(folder / "my_data", recipe="small_data", out=folder / "runs/mine", **given)
    shutil.copytree(folder / "runs/mine", folder / "runs/fpn")
    trained = {("train", frozenset(options)) for options in (("data", "out"), ("data", "recipe", "out"))}
    yield Sandbox(folder, trained)
    for kind, table in plugins._TABLES.items():
        table.clear()
        table.update(before[kind])
    for path in [path for path in plugins._LOADED if Path(path).parent == folder.resolve()]:
        del plugins._LOADED[path]
        sys.modules.pop(Path(path).stem, None)


@pytest.fixture(autouse=True)
def quick(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the sandbox, on narrow detectors; `msefpn report` writes the reports."""
    monkeypatch.chdir(sandbox.folder)
    monkeypatch.syspath_prepend(sandbox.folder)
    monkeypatch.setattr(plan, "load_recipe", narrow)
    monkeypatch.setattr(report, "report_training", lambda _: None)


def shortened(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options to add to those given."""
    if given.get("resume"):  # it may change these alone
        return {"device": "cpu", "workers": 0, "epochs": 2}
    small = {key: value for key, value in SMALL.get(name, {}).items() if key not in given}
    return SHORT.get(name, {}) | small


def check_names(name: str, given: dict[str, Any]) -> None:
    """Resolve the recipes, necks and detectors that a command names."""
    plugins.load(given.get("plugin", ()))
    options = {key: given[key] for key in vars(Config()) if key in given and name != "ablate"}
    options |= parse_settings(given.get("set", ()))
    if name in ("cost", "ablate"):
        check_rows(given["rows"])
        configs = row_configs(given["rows"], given.get("recipe"), "faster_rcnn_r50_mse_fpn_1x")
    elif name == "train":
        recipe = given.get("recipe") or "faster_rcnn_r50_mse_fpn_1x"
        configs = {"": load_recipe(str(recipe), **options)}
    else:
        return
    for config in configs.values():
        check_neck_name(config.neck)
        assert config.detector in known("detector")


def run_command(command: str, sandbox: Sandbox, *, only_parse: bool) -> None:
    """Run a command of msefpn, or look up its options and names."""
    _, name, *words = shlex.split(command)
    given = vars(command_parser(name, {}).parse_args(words))
    check_names(name, given)
    if only_parse:
        return
    sandbox.clear(given)
    if not sandbox.is_new(name, given):
        if name == "train" and "resume" not in given:
            sandbox.stand_in(given)
        return
    for key, value in shortened(name, given).items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    assert main([name, *words]) == 0, command


def run_shell(block: Block, page: str, sandbox: Sandbox) -> None:
    for command in commands(block):
        if launched := re.match(r"(?:torchrun .* -m|srun) (msefpn .*?)(?: '&')?$", command):
            run_command(launched[1], sandbox, only_parse=True)
        elif command.startswith("msefpn "):
            rare = any(re.search(pattern, command) for pattern in PARSED_ONLY)
            run_command(command, sandbox, only_parse=rare or page.startswith(LONG))
        elif block.language != "bash":  # which is a file for another program
            assert any(re.match(pattern, command) for pattern in NOT_RUN), f"{page}: what runs '{command}'?"


def shorter(function: Callable[..., Any], sandbox: Sandbox) -> Callable[..., Any]:
    """A public function that takes the options by which its command is made shorter."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
        sandbox.clear(given)
        if function.__name__ == "train" and not sandbox.is_new("train", given):
            if hasattr(given["data"], "classes"):
                datasets.materialise(given["data"], sandbox.folder / "written")
            return sandbox.stand_in(given)
        return function(**given | shortened(function.__name__, given))

    return call


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_page(page: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in COMMANDS.values():
        monkeypatch.setattr(sys.modules[function.__module__], function.__name__, shorter(function, sandbox))
    names: dict[str, Any] = {"__name__": page}
    for block in blocks(page):
        if block.language in ("sh", "console", "bash"):
            run_shell(block, page, sandbox)
        elif block.language == "python":
            if "import datasets" in block.text:
                pytest.importorskip("datasets")
            code = compile(block.text, page, "exec")
            if not any(
                re.search(rf"(from|import) {name}\b", block.text) and not find_spec(name) for name in OTHERS
            ):
                exec(code, names)
        elif block.language == "yaml":
            named = re.match(r"# (\S+\.yaml)\n", block.text)
            assert named, f"{page}: begin a recipe with its name, as in '# mine.yaml'"
            (sandbox.folder / named[1]).write_text(block.text, encoding="utf-8")
            load_recipe(named[1])


def test_reasons_still_hold() -> None:
    found = [
        command
        for page in PAGES
        for block in blocks(page)
        if block.language in ("sh", "console")
        for command in commands(block)
    ]
    for pattern in PARSED_ONLY | NOT_RUN:
        assert any(re.search(pattern, command) for command in found), f"nothing of '{pattern}' in the pages"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("msefpn train --neck fpm", "unknown neck 'fpm'"),
        ("msefpn train --recipe small_date", "unknown recipe"),
        ("msefpn ablate fpn ablation_gcq", "unknown neck or recipe"),
        ("msefpn predict runs/mine photos --scores 0.5", "did you mean '--score'"),
        ("msefpn train --set neck_option.gate=none", "did you mean 'neck_options'"),
        ("msefpn trian", "trian"),
    ],
)
def test_a_wrong_command_is_found(command: str, said: str, sandbox: Sandbox) -> None:
    with pytest.raises((msefpn.UserError, KeyError), match=said):
        run_command(command, sandbox, only_parse=True)
