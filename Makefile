# inferd. Targets: all, check, check-matrix, check-style, soak, asan, tsan, fuzz, bench, install; `make help` lists them.
# Programs land in build/, objects in build/obj/$(CONFIG)/.
CONFIG  ?= release
BUILD   ?= build
PREFIX  ?= /usr/local
ifeq ($(origin CC),default)
CC      := gcc
endif
VERSION := 0.1.0

OBJ     := $(BUILD)/obj/$(CONFIG)
BIN     := $(if $(filter release,$(CONFIG)),$(BUILD),$(BUILD)/$(CONFIG))

WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Werror
OPT     := -O2 -g
SAN_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SAN_tsan := -fsanitize=thread -fno-omit-frame-pointer
SAN_fuzz := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
SAN     := $(SAN_$(CONFIG))
# No contraction, no fast math: the numeric contract (docs/numerics.md) writes every fused operation.
CFLAGS  := -std=gnu11 $(OPT) $(WARN) $(SAN) -ffp-contract=off -fno-math-errno -fvisibility=hidden -pthread \
           -I. -DINFERD_VERSION='"$(VERSION)"' $(EXTRA_CFLAGS)
# Scalar code is built for the baseline CPU; fmaf() is inlined where the ISA has it.
LDFLAGS := $(SAN) -pthread
PKG     := libmicrohttpd jansson libcurl libsystemd libpcre2-8
CORELIBS = -lm $(CUDA_LIBS)
PKGLIBS  = $(shell pkg-config --libs $(PKG))
LIBS     = $(PKGLIBS) $(CORELIBS)
TESTLIBS  = $(shell pkg-config --libs check) -lcurl

# SIMD levels of the CPU device: kernels/cpu/*_<isa>.c is compiled with its own flags and chosen at run time.
ISA_avx2        := -mavx2 -mfma -mf16c
ISA_avxvnni     := -mavx2 -mfma -mf16c -mavxvnni
ISA_avx512      := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c
ISA_avx512vnni  := $(ISA_avx512) -mavx512vnni
isa_of          = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $1)))))
# These templates take minutes sanitized at -O3, and half of their time goes into debug information about variables; of the
# products the addresses alone are checked, by calls: inline checks take three times as long to compile.
KERNEL_asan     := --param asan-instrumentation-with-call-threshold=0
kernel_flags    = $(if $(SAN),-O1,-O3) -fno-var-tracking $(if $(isa_of),$(isa_of) $(if $(SAN),-fno-sanitize=undefined -DNO_UNROLL $(KERNEL_$(CONFIG))))

# The CUDA engine: with nvcc, in release builds; else a stand-in that says there is none. Machine code for CUDA_ARCHS (the cards
# of this machine, else sm_90; "all" for packages), and PTX of the lowest so that any other card from sm_75 on can run it.
NVCC       ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA       := $(if $(NVCC),$(if $(filter release,$(CONFIG)),yes))
CUDA_HOME  := $(if $(NVCC),$(abspath $(dir $(realpath $(shell command -v $(NVCC))))..))
CUDA_FOUND := $(if $(CUDA),$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | grep -xE '[0-9]+' | sort -u))
CUDA_ARCHS ?= $(or $(CUDA_FOUND),90)
CUDA_PTX   ?= 75
CUDA_ALL   := 75 80 86 87 88 89 90 100 103 110 120 121
cuda_sm     = $(if $(filter all,$1),$(CUDA_ALL),$1)
cuda_gen    = $(foreach a,$(call cuda_sm,$1),-gencode=arch=compute_$a,code=sm_$a) \
               $(foreach a,$(CUDA_PTX),-gencode=arch=compute_$a,code=compute_$a)
NVCCFLAGS   = -std=c++17 -O3 -I. -fmad=false -Xcompiler -fPIC,-fno-threadsafe-statics \
               $(call cuda_gen,$(CUDA_ARCHS))
CUDA_LIBS  := $(if $(CUDA),-L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt -lpthread)

src     = $(filter-out %/main.c,$(wildcard $1))
CORE    := $(call src,base/*.c kernels/*.c kernels/ref/*.c kernels/cpu/*.c engine/*.c)
ifdef CUDA
CORE    := $(filter-out kernels/cuda_none.c,$(CORE)) $(wildcard kernels/cuda/*.c kernels/cuda/*.cu)
endif
TEXT    := $(call src,engine/text/*.c)
API     := $(call src,api/*.c)
DAEMON  := $(call src,daemon/*.c)
TESTS   := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
SLOW    := $(patsubst tests/%.c,%,$(wildcard tests/matrix_*.c))
HELPERS := $(filter-out tests/test_% tests/matrix_% tests/make_% tests/fuzz_%,$(wildcard tests/*.c))
TOOLS   := $(patsubst tests/%.c,%,$(wildcard tests/make_*.c))
FUZZERS := $(patsubst tests/%.c,%,$(wildcard tests/fuzz_*.c))
objs    = $(addprefix $(OBJ)/,$(addsuffix .o,$(basename $1)))

PROGRAMS := $(if $(wildcard daemon/main.c),$(BIN)/inferd) $(if $(wildcard bench/eval.c),$(BIN)/inferd-eval) \
            $(if $(wildcard bench/bench.c),$(BIN)/inferd-bench)

.PHONY: all tests check check-matrix check-style soak cuda-check cuda-full cuda-code cuda-gate gpu-check gpu-bench asan tsan fuzz fuzzers bench install clean help
.SECONDARY:
all: $(PROGRAMS)

$(OBJ)/libcore.a: $(call objs,$(CORE))
$(OBJ)/libtext.a: $(call objs,$(TEXT))
$(OBJ)/libapi.a: $(call objs,$(API))
$(OBJ)/libdaemon.a: $(call objs,$(DAEMON))
$(OBJ)/libtest.a: $(call objs,$(HELPERS))
%.a:
	@rm -f $@
	$(if $^,ar rcs $@ $^,ar rcs $@)

ARCHIVES := $(addprefix $(OBJ)/,libdaemon.a libapi.a libtext.a libcore.a)
$(BIN)/inferd: $(OBJ)/daemon/main.o $(ARCHIVES)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)
$(BIN)/inferd-eval: $(call objs,bench/eval.c bench/kl.c) $(OBJ)/libtext.a $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $^ $(shell pkg-config --libs jansson libpcre2-8) $(CORELIBS)
# The packed products alone, by hand: make build/bench-product && build/bench-product Q4_1
$(BIN)/bench-product: $(OBJ)/bench/product.o $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $^ -lm
$(BIN)/inferd-bench: $(call objs,bench/bench.c bench/runner.c bench/speculation.c bench/bandwidth.c) $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $^ $(CORELIBS)
$(BIN)/test_%: $(OBJ)/tests/test_%.o $(OBJ)/libtest.a $(ARCHIVES)
	$(CC) $(LDFLAGS) -o $@ $^ $(TESTLIBS) $(LIBS)
$(BIN)/matrix_%: $(OBJ)/tests/matrix_%.o $(OBJ)/libtest.a $(ARCHIVES)
	$(CC) $(LDFLAGS) -o $@ $^ $(TESTLIBS) $(LIBS)
$(BIN)/make_%: $(OBJ)/tests/make_%.o $(OBJ)/libtest.a $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $^ $(CORELIBS)

$(BIN)/fuzz_%: $(OBJ)/tests/fuzz_%.o $(OBJ)/libtest.a $(ARCHIVES)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

$(OBJ)/%.o: %.c Makefile
	@mkdir -p $(@D) $(BIN)
	$(CC) $(CFLAGS) $(if $(filter kernels/cpu/% kernels/qtype.c,$<),$(call kernel_flags,$<)) -MMD -MP -c -o $@ $<
$(OBJ)/api/embed.o: openapi.yaml api/page.html
# What ptxas says of registers and spills stays beside the object, for cuda-gate; what the compiler warns of is shown.
$(OBJ)/kernels/cuda/%.o $(OBJ)/kernels/cuda/%.log: kernels/cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -Xptxas -v -MMD -MP -MF $(basename $@).d -c -o $(basename $@).o $< >$(basename $@).log 2>&1 || \
	    (cat $(basename $@).log; rm $(basename $@).log; false)
	@grep -A2 -i warning $(basename $@).log || true
$(OBJ)/kernels/cuda/%.o: CFLAGS += -isystem $(CUDA_HOME)/include

# The same files for the host shim (tests/emu/): a card without a card. Its fibers do not go with sanitizers, the host side does:
# C++ is the same for all configurations.
EMU      := $(OBJ)/emu
EMU_CXX  := $(BUILD)/obj/emu
emu_objs  = $(patsubst %.c,$(EMU)/%.c.o,$(filter %.c,$1)) $(patsubst %,$(EMU_CXX)/%.o,$(filter-out %.c,$1))
EMUFLAGS := -Itests/emu -I. -O2 -g -fno-var-tracking -ffp-contract=off -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas
# A card traps where a vector of 8 or 16 bytes is not aligned; this processor does not always.
EMUALIGN := -fsanitize=alignment -fsanitize-undefined-trap-on-error
EMUOBJS  := $(call emu_objs,$(wildcard kernels/cuda/*.c kernels/cuda/*.cu tests/emu/*.cc))
$(EMU)/%.c.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) -std=gnu11 $(EMUFLAGS) $(SAN) -MMD -MP -c -o $@ $<
$(EMU_CXX)/%.o: % Makefile
	@mkdir -p $(@D)
	$(CXX) -std=gnu++17 $(EMUFLAGS) $(EMUALIGN) -MMD -MP -c -o $@ -x c++ $<
EMUTESTS := test_cuda test_cuda_card test_cuda_draw
$(EMUTESTS:%=$(OBJ)/tests/%.o): CFLAGS += -Itests/emu
$(EMUTESTS:%=$(BIN)/%): $(BIN)/%: $(OBJ)/tests/%.o $(call emu_objs,bench/gpu_probe.cu) $(EMUOBJS) $(OBJ)/libtest.a $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $^ $(TESTLIBS) -lm -lstdc++
# The worker on the shim, for test_daemon_cuda.
$(BIN)/inferd-emu: $(OBJ)/daemon/main.o $(EMUOBJS) $(ARCHIVES)
	$(CC) $(LDFLAGS) -o $@ $^ $(PKGLIBS) -lm -lstdc++
$(BIN)/test_daemon_cuda: | $(BIN)/inferd-emu

-include $(shell find $(OBJ) $(EMU_CXX) -name '*.d' 2>/dev/null)

tests: all $(addprefix $(BIN)/,$(TESTS) $(TOOLS))
check: tests check-style
	scripts/run-tests $(BIN) $(TESTS)
# Slow: every family in every weight type against a float64 forward pass, and published shapes in the real worker.
check-matrix: all $(addprefix $(BIN)/,$(SLOW))
	CK_TIMEOUT_MULTIPLIER=20 scripts/run-tests $(BIN) $(SLOW)
check-style:
	scripts/check-style
# On a machine with a card: the device against the reference, and its speeds into bench/results/. They need the toolkit alone.
GPUOBJS := $(call objs,tests/apart.c tests/pair.c $(wildcard tests/tiny*.c) tests/ggufw.c)
GPUCHECK := bench/gpu_check.c bench/gpu_probe.cu
GPUBENCH := $(filter-out bench/gpu_check.c,$(wildcard bench/gpu_*.c)) bench/gpu_kernels.cu
$(BIN)/gpu-check: $(call objs,$(GPUCHECK))
$(BIN)/gpu-bench: $(call objs,$(GPUBENCH))
$(BIN)/gpu-check $(BIN)/gpu-bench: $(GPUOBJS) $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(OBJ)/libcore.a $(CORELIBS)
$(EMU)/gpu-check: $(call emu_objs,$(GPUCHECK))
$(EMU)/gpu-bench: $(call emu_objs,$(GPUBENCH))
$(EMU)/gpu-check $(EMU)/gpu-bench: $(EMUOBJS) $(GPUOBJS) $(OBJ)/libcore.a
	$(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) $(OBJ)/libcore.a -lm -lstdc++
$(call objs,$(GPUCHECK) $(GPUBENCH)): CFLAGS += -isystem $(CUDA_HOME)/include
$(OBJ)/bench/%.o: bench/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
gpu-check:
	scripts/gpu check $(GPU_ARGS)
gpu-bench:
	scripts/gpu bench $(GPU_ARGS)
# The CUDA engine without a GPU: all families and types on the shim, no kernel that spills, code for every architecture.
CU := $(wildcard kernels/cuda/*.cu)
cuda-check: $(EMUTESTS:%=$(BIN)/%)
	scripts/run-tests $(BIN) $(EMUTESTS)
	$(MAKE) cuda-full cuda-code
# What test_cuda leaves out takes minutes: its cases are shared out over the processors.
CUDA_FULL := columns first second
cuda-full: $(CUDA_FULL:%=cuda-full-%)
$(CUDA_FULL:%=cuda-full-%): cuda-full-%: $(BIN)/test_cuda
	CK_RUN_CASE=$* $(BIN)/test_cuda full
cuda-code:
	$(if $(NVCC),,$(error cuda-check needs nvcc (the CUDA toolkit)))
	$(MAKE) $(EMU)/gpu-check $(EMU)/gpu-bench $(BIN)/gpu-check $(BIN)/gpu-bench
	$(EMU)/gpu-check --small
	$(EMU)/gpu-bench --smoke smollm2 Q4_0 >$(EMU)/smoke.jsonl
	bench/gpu-report $(EMU)/smoke.jsonl
	$(MAKE) $(if $(filter all,$(CUDA_ARCHS)),,BUILD=$(BUILD)/cuda-all CUDA_ARCHS=all) cuda-gate
CU_LOGS := $(patsubst %.o,%.log,$(call objs,$(CU)))
cuda-gate: $(call objs,$(CU)) $(CU_LOGS)
	scripts/cuda-gate sm_90 $(CU_LOGS)
# Clients at once against the real worker, every answer as alone: SOAK_MINUTES from SOAK_SEED.
SOAK_MINUTES ?= 3
soak: $(BIN)/inferd $(BIN)/test_soak
	SOAK_SECONDS=$$(($(SOAK_MINUTES) * 60)) $(BIN)/test_soak
asan tsan:
	$(MAKE) CONFIG=$@ tests
	CK_TIMEOUT_MULTIPLIER=40 scripts/run-tests $(BUILD)/$@ $(TESTS)

# Each fuzz target for FUZZ_SECONDS, from the corpus that earlier runs left.
FUZZ_SECONDS ?= 60
fuzzers: $(addprefix $(BIN)/,$(FUZZERS))
fuzz:
	$(MAKE) CONFIG=fuzz CC=clang fuzzers
	for f in $(FUZZERS); do \
	    mkdir -p $(BUILD)/fuzz/corpus/$$f && \
	    $(BUILD)/fuzz/$$f -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 \
	        -artifact_prefix=$(BUILD)/fuzz/$$f. $(BUILD)/fuzz/corpus/$$f || exit 1; \
	done

# Speeds of MODEL (the default one) on this machine; against llama.cpp: bench/versus-llama.cpp.
bench: $(BIN)/inferd-bench
	$(BIN)/inferd-bench -m "$${MODEL:-$$(scripts/get-model)}" -p 512 -n 128 -d 0,2048 -b 1,8

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	sed 's#/usr/local/bin#$(PREFIX)/bin#' systemd/inferd.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/inferd.service

help:
	@echo 'all          the programs, in $(BIN)/: $(notdir $(PROGRAMS))'
	@echo 'check        build and run all tests, check the style'
	@echo 'check-matrix every family in every weight type against float64, published shapes in the worker: minutes'
	@echo 'check-style  the rules that a grep can hold'
	@echo 'asan, tsan   the tests under the address and undefined-behaviour, or the thread sanitizer'
	@echo 'soak         clients at random against the worker for SOAK_MINUTES, every answer compared'
	@echo 'fuzz         each tests/fuzz_*.c for FUZZ_SECONDS'
	@echo 'bench        speeds of MODEL on this machine'
	@echo 'cuda-check   the CUDA engine without a GPU: host shim, spills, every architecture (needs nvcc)'
	@echo 'gpu-check    the CUDA engine on this card against the reference, byte for byte'
	@echo 'gpu-bench    speeds of this card into bench/results/ (GPU_ARGS=--quick: three minutes); scripts/gpu: both'
	@echo 'install      to $$(DESTDIR)$$(PREFIX), by default /usr/local'
	@echo 'clean        remove $(BUILD)/'

clean:
	rm -rf $(BUILD)
