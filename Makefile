# Every target sets itself up: a .venv in the checkout, installed once, reused while pyproject.toml is unchanged.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what a device has: no torch
DEVICE := .venv-device
STATE := $(shell cat pyproject.toml setup.py kernels/csrc/*.cpp kernels/csrc/*.h | sha256sum | cut -c1-16)
STAMP := $(VENV)/.installed-$(STATE)
DEVICE_STAMP := $(DEVICE)/.installed-$(STATE)

# Labelled photos beside the checkout, where there are any; synthetic scenes elsewhere.
PHOTOS := $(firstword $(wildcard ../shared/data/coco128))
DEMO_DATA := $(if $(PHOTOS),--images $(PHOTOS) --data $(PHOTOS),)

.PHONY: demo test test-device test-slow test-sanitizers docs ship web results check format links clean

demo: $(STAMP)
	$(BIN)/sam-edge run --out demo $(DEMO_DATA)

# tests keep to one thread each; timings, which neighbours would spoil, are among the slow ones
test: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

# the tests of the device half where torch is not installed
test-device: $(DEVICE_STAMP)
	$(DEVICE)/bin/python -m pytest -q

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow or not slow"

# the kernels' tests with every access and every undefined operation checked, CUDA's in emulation; needs GCC
SANITIZED := build/sanitized/libsam_edge.so
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all
test-sanitizers: $(STAMP)
	mkdir -p $(dir $(SANITIZED))
	g++ -std=c++17 -O1 -g $(SANITIZERS) -fPIC -shared -pthread kernels/csrc/*.cpp -o $(SANITIZED)
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONMALLOC=malloc SAM_EDGE_KERNELS=$(SANITIZED) SAM_EDGE_EMULATION=sanitized $(BIN)/python -m pytest -q tests/kernels

# the site, from docs/, the options, the docstrings and the imports; a dead link ends it
docs: $(STAMP)
	$(BIN)/python docs/build.py

check: $(STAMP) links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py tests/test_packaging.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what ships beside nano's weights: the graphs, in integers, that are nano where there is no torch
ship: $(STAMP)
	rm -rf build/nano-int8 sam_edge/shipped/nano-onnx
	OMP_NUM_THREADS=1 $(BIN)/sam-edge quantize nano --images $(PHOTOS) --out build/nano-int8
	$(BIN)/sam-edge export-onnx build/nano-int8 --precision int8 --products none \
		--images $(PHOTOS) --data $(PHOTOS) --out sam_edge/shipped/nano-onnx

# what the page of export-web runs graphs with, from npm, of the version and hash in package-lock.json
web: $(STAMP)
	npm ci --prefix sam_edge/web --ignore-scripts --no-audit --no-fund
	$(BIN)/python -m sam_edge.web.pack sam_edge/web/node_modules/onnxruntime-web
	rm -rf sam_edge/web/node_modules

# every number that README and docs show: what is missing, or of another model, is measured again; WHAT names some,
# WHAT="--jobs 2" takes two at once that take no times
results: $(STAMP)
	$(BIN)/python -m sam_edge.studies.results $(WHAT)

# mypy follows files, not setuptools' mapping
links:
	@for folder in export kernels bench; do ln -sfn ../$$folder sam_edge/$$folder; done

$(STAMP): EXTRAS := dev
$(DEVICE_STAMP): EXTRAS := cpu,test
$(STAMP) $(DEVICE_STAMP): pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	# while the links are there, setuptools takes them for the mapping and writes none
	rm -f sam_edge/export sam_edge/kernels sam_edge/bench
	$(@D)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	rm -f $(@D)/.installed-*
	touch $@

clean:
	rm -rf $(VENV) $(DEVICE) demo build dist site docs/generated *.egg-info kernels/*.so sam_edge/export sam_edge/kernels sam_edge/bench
