# make demo   both stages on embedded data, to runs/demo/finetune/report.html
# make test   all tests
# make lint   style
# Each creates .venv where it is not there or a requirements file has changed.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo test lint

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/installed
	$(RUN) main.py --config=configs/pretrain.py --workdir=runs/demo/pretrain \
		--config.train_steps=100
	$(RUN) main.py --config=configs/finetune.py --workdir=runs/demo/finetune \
		--config.pretrained=runs/demo/pretrain --config.train_steps=250

test: .venv/installed
	$(RUN) -m pytest -n 2 --dist loadgroup

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
