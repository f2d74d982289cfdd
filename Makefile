# make quickstart   set up, train on the built-in data, draw detections on images it did not train on
# make test         set up, check style and types, run the tests
# make style, types, tests   each of these alone
# make docs         set up, build the site into build/docs, executing its notebooks
# make lock         move every pinned version to today's
# make audit        list what is installed as an SBOM (CycloneDX), and look up known vulnerabilities of the lock

PYTHON ?= python3
BIN := .venv/bin
# Without bytecode every process of a test compiles torch and the rest anew: 27 CPU seconds in place of 10.
unexport PYTHONDONTWRITEBYTECODE
RUN := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: quickstart test style types tests docs lock audit

quickstart: .venv/.installed
	$(BIN)/msefpn train --recipe quickstart --out $(RUN)
	$(BIN)/msefpn predict $(RUN) runs/builtin-data/val --out $(RUN)/pictures

test: style types tests

style: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.installed
	$(BIN)/mypy

tests: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTESTOPTS)

docs: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q $(SPHINXOPTS) docs build/docs

lock: .venv/.installed
	$(BIN)/uv pip compile pyproject.toml --group dev --all-extras --universal --python-version 3.11 \
		--generate-hashes --upgrade --quiet --custom-compile-command "make lock" --output-file requirements.lock

audit: .venv/.installed
	mkdir -p build
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.cdx.json
	$(BIN)/python .ci/audit.py requirements.lock

# The stamp is written last: an environment without it is half-made and is made anew. An older complete one is
# brought up to date in place. pip installs uv, by the lock's hashes, because uv installs the rest 4x faster.
.venv/.installed: requirements.lock pyproject.toml
	test -e $@ || $(PYTHON) -m venv --clear .venv
	rm -f $@
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@
