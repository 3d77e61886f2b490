.DEFAULT_GOAL := help
PYTHON ?= python3
PORT ?= 8000
MODEL ?=

.PHONY: help setup setup-kernels setup-scale-out serve demo test test-scale-out test-image check format kernels cost \
	bench bench-full soak train-tiny clean

help: ## list what can be done here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## make .venv with the server in it, and a default model
	@PYTHON=$(PYTHON) scripts/setup.sh

setup-kernels: ## make .venv-kernels, where Triton runs without a GPU
	@PYTHON=$(PYTHON) scripts/setup.sh kernels

setup-scale-out: ## add Ray Serve and vllm-router to .venv
	@PYTHON=$(PYTHON) scripts/setup.sh scale-out

serve: setup ## serve the default model (or MODEL=...) on port 8000 (or PORT=...)
	VLLM_CPU_KVCACHE_SPACE=$${VLLM_CPU_KVCACHE_SPACE:-2} .venv/bin/dfmr-serve $(MODEL) --port $(PORT)

demo: setup ## start a server, ask it about several pictures, show what was saved, stop it
	.venv/bin/python examples/demo.py

test: setup setup-kernels ## pass all tests: with the real engine, and the kernels under Triton's interpreter
	.venv/bin/python -m pytest
	.venv-kernels/bin/python -m pytest tests/dfmr_kernels

test-scale-out: setup-scale-out ## kill one of two replicas behind vllm-router, and in Ray Serve, under load
	DFMR_SCALE_OUT=1 .venv/bin/python -m pytest -rs -s tests/scale_out

test-image: setup ## build the CPU image and serve from it; needs root and buildah
	DFMR_IMAGE=1 .venv/bin/python -m pytest -rs tests/deploy/test_image_build.py

check: setup ## lint, format and types, and that generated files are up to date
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m deploy.metrics_doc --check
	.venv/bin/python -m deploy.dashboards --check
	.venv/bin/python -m deploy.profiles_schema --check
	.venv/bin/python -m loadtests.readme --check
	.venv/bin/hadolint --failure-threshold style Dockerfile

format: setup ## format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

kernels: setup-kernels ## compile the kernels for sm_80, sm_90 and sm_100, and print what they use
	.venv-kernels/bin/python -m dfmr_kernels.aot

cost: setup ## time the reduction under every metric against the vision tower, at LLaVA-1.5's sizes
	.venv/bin/python benchmarks/reduce_cost.py

bench: setup ## measure speed against baselines on this CPU (about ten minutes; RESUME=1 goes on); writes loadtests/results
	.venv/bin/python -m loadtests bench $(if $(RESUME),--resume)

bench-full: setup ## the whole matrix (MODEL=1b by default, MODEL=7b for a GPU; RESUME=1 goes on)
	.venv/bin/python -m loadtests bench --size full --model $(or $(MODEL),1b) $(if $(RESUME),--resume)

soak: setup ## load, disconnects and rubbish for MINUTES=15, and what must hold afterwards
	.venv/bin/python -m loadtests soak --minutes $(or $(MINUTES),15)

train-tiny: setup ## train the embedded model from nothing (hours; resumes where it was stopped)
	.venv/bin/python -m training.tiny

clean: ## remove what make setup made
	rm -rf .venv .venv-kernels .uv models/standin
