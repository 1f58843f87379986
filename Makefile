# SPDX-License-Identifier: BSD-3-Clause
# The two commands of the README are `make demo` and `make test`; both set everything up first.
PYTHON := .venv/bin/python
SHELL := /bin/bash
CPU_SUITES := host cpu-linear cpu-conv cpu-decode cpu-model cpu-stacks
DEVICE_SUITES := convert solvers

.PHONY: help demo test setup setup-test install recipes-quick bench-cpu bench-gpu docs-performance lint format wheel clean

help:
	@echo "make demo       set up, build, run the main job on real data (demo-out/report.html)"
	@echo "make test       set up, build, run every test this machine can run"
	@echo "make recipes-quick DATA=folder   prune a ResNet-20 in five ways, write recipes-out/report.html"
	@echo "make bench-cpu  measure this machine (15 minutes), write bench/results/<machine>.jsonl;"
	@echo "                DATA=folder adds trained networks and their sparsity patterns"
	@echo "make bench-gpu  the same for this machine's GPU"
	@echo "make docs-performance   write docs/performance.md and its plots from bench/results"
	@echo "make wheel      a manylinux wheel in wheelhouse/"
	@echo "make format     clang-format and ruff, in place"

demo: install
	$(PYTHON) examples/digits_demo.py

test:
	@scripts/test.sh

setup:
	@scripts/setup.sh demo

setup-test:
	@scripts/setup.sh test

# Builds the core, the operators and the command, and installs the package into .venv.
install: setup
	@scripts/install.sh

recipes-quick: install
	$(PYTHON) examples/recipes/resnet_cifar10.py --quick --report recipes-out/report.html \
	  $(if $(DATA),--data $(DATA))

bench-cpu: install
	for suite in $(CPU_SUITES); do \
	  $(PYTHON) -m gossamer.bench $$suite --json auto $(if $(DATA),--data $(DATA)) || exit 1; \
	done
	for suite in $(DEVICE_SUITES); do \
	  $(PYTHON) -m gossamer.bench $$suite --device cpu --threads all --json auto || exit 1; \
	done

bench-gpu: install
	$(PYTHON) -m gossamer.bench gpu-24 --threads all --json auto
	$(PYTHON) -m gossamer.bench gpu-model --threads all --json auto
	for suite in $(DEVICE_SUITES); do \
	  $(PYTHON) -m gossamer.bench $$suite --device cuda --threads all --json auto || exit 1; \
	done

docs-performance: install
	$(PYTHON) -m gossamer.bench.performance

wheel: setup-test
	@scripts/wheel.sh

lint: setup-test
	@scripts/lint.sh --tidy

format: setup-test
	@scripts/lint.sh --fix

clean:
	rm -rf build dist wheelhouse demo-out recipes-out
