# make demo   both stages on embedded data, to runs/demo/finetune/report.html
# make test   all tests
# make lint   style and types
# make reader the page of an export, from the sources in reader/; needs npm
# Each creates .venv where it is not there or a requirements file has changed.

PYTHON ?= python3
RUN := .venv/bin/python

READER := infantxray/export_assets/built/reader.html

.PHONY: demo test lint reader

.venv/installed: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps --editable .
	touch $@

demo: .venv/installed
	$(RUN) main.py --config=configs/pretrain.py --workdir=runs/demo/pretrain
	$(RUN) main.py --config=configs/finetune.py --workdir=runs/demo/finetune \
		--config.pretrained=runs/demo/pretrain

reader: $(READER)

$(READER): reader/package-lock.json reader/build.mjs $(wildcard reader/src/* reader/src/*/*)
	cd reader && npm ci --no-audit --no-fund && npm run check && npm run build

# The tests of the page need it where it can be built, and skip where it cannot.
test: .venv/installed $(if $(shell command -v npm),$(READER))
	$(RUN) -m pytest -n 2 --dist loadgroup

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
