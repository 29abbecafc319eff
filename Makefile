.PHONY: install run test check format docs schema lock gpu-wheels

install:  ## set up .venv from the lock
	bash requirements/install.sh

run: install  ## the main job on the quick start
	.venv/bin/deft run examples/quickstart.yaml

test: install  ## everything CI runs
	.venv/bin/python -m pytest

check: install  ## lint and types, as pre-commit runs them
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: install  ## write what the documents take from the code, and build them in .cache/site
	.venv/bin/python docs/generate.py
	.venv/bin/mkdocs build --strict

schema: install  ## write the JSON Schemas of run and sweep files from the settings
	.venv/bin/deft schema run > docs/schema/run.json
	.venv/bin/deft schema sweep > docs/schema/sweep.json

lock:  ## resolve requirements/*.in anew; needs uv, and UV_FIND_LINKS or an index with CPU torch
	cd requirements && uv pip compile cpu.in --override cpu.overrides --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-emit-find-links --no-emit-index-url --generate-hashes -o cpu.lock
	cd requirements && uv pip compile gpu.in --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --no-emit-find-links --no-emit-index-url --generate-hashes -o gpu.lock

# For a GPU machine without network whose Python 3.12 has PyTorch, Triton and transformers already.
GPU_WHEELS = annotated-types cut-cross-entropy datasets dill hjson liger-kernel multiprocess pydantic \
	pydantic-core typing-inspection
PLATFORMS = $(addprefix --platform ,manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)

gpu-wheels: install  ## gather in .wheels what tests/gpu/check.sh needs there (WHEELS=.wheels)
	rm -rf .wheels
	for name in $(GPU_WHEELS); do grep -h "^$$name==" requirements/gpu.lock requirements/cpu.lock | head -1 | cut -d' ' -f1; done \
		| .venv/bin/pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
		--implementation cp $(PLATFORMS) -d .wheels -r /dev/stdin
	DS_BUILD_OPS=0 .venv/bin/pip wheel --quiet --no-deps --no-build-isolation -w .wheels \
		"$$(grep '^deepspeed==' requirements/gpu.lock | cut -d' ' -f1)"
	du -sh .wheels
