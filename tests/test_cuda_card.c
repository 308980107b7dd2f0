/* The CUDA device on the host shim (tests/emu/): cards that cannot be used, memory that is planned, and every launch and call
 * that can fail, failing. */
#include "bench/gpu_probe.h"
#include "tests/damage.h"
#include "tests/rig.h"
#include "tests/shim.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static struct kern_config small_config(void)
{
    return (struct kern_config){.n_layer = 2, .dim = 64, .n_head = 2, .n_kv_head = 1, .head_dim = 32, .n_vocab = 96,
                                .n_ff = 64, .max_rows = 4, .max_logits = 4, .n_pages = 8, .weight_bytes = 1 << 16};
}

static void open_fails(const char *message)
{
    struct kern_config c = small_config();
    struct err err = {0};
    ck_assert_ptr_null(kern_cuda()->open(&c, &err));
    ck_assert_int_eq(err.code, ERR_DEVICE);
    ck_assert_msg(strstr(err.msg, message) != NULL, "message \"%s\", expected \"%s\"", err.msg, message);
    ck_assert_uint_eq(emu_taken(), 0);
}

START_TEST(cards_that_cannot_be_used)
{
    struct emu_card *card = emu_card();
    card->probe = 35;
    card->driver = 0;
    open_fails("no NVIDIA driver on this machine");
    card->driver = 12040;
    open_fails("the NVIDIA driver is for CUDA 12.4, needed is 13.0 or later");
    card->probe = 100;
    open_fails("no NVIDIA GPU on this machine");
    card->probe = 0;
    card->n_devices = 0;
    open_fails("no NVIDIA GPU on this machine");
    card->n_devices = 1;
    card->capability = 70;
    open_fails("compute capability 7.0, needed is 7.5 or later");
    card->capability = 89;
    card->code = cudaErrorUnsupportedPtxVersion;
    open_fails("compute capability 8.9, and no code of this build runs there: the provided PTX was compiled with an unsupported "
               "toolchain.; build with CUDA_ARCHS=89");
}
END_TEST

/* The shim's operands of the tensor cores are those of the PTX ISA, not only those that the kernels expect. */
START_TEST(instructions)
{
    struct kern_config c = small_config();
    struct err err = {0};
    c.weight_bytes = probe_bytes();
    struct kern *k = kern_cuda()->open(&c, &err);
    ck_assert_msg(k != NULL, "%s", err.msg);
    ck_assert_msg(probe_run((struct cuda *)k, &err), "%s", err.msg);
    kern_cuda()->close(k);
}
END_TEST

START_TEST(index_out_of_range)
{
    struct kern_config c = small_config();
    struct err err = {0};
    emu_card()->n_devices = 2;
    c.device_index = 2;
    ck_assert_ptr_null(kern_cuda()->open(&c, &err));
    ck_assert_str_eq(err.msg, "device cuda:2: this machine has 2 (cuda:0 to cuda:1)");
    c.device_index = 1;
    struct kern *k = kern_cuda()->open(&c, &err);
    ck_assert_msg(k != NULL, "%s", err.msg);
    char text[64];
    struct kern_facts facts;
    kern_cuda()->facts(k, &facts);
    ck_assert_int_eq(facts.sm, 90);
    ck_assert_str_eq(facts.runtime, "13.0");
    ck_assert_uint_eq(facts.memory_total, emu_card()->memory);
    kern_cuda()->describe(k, text, sizeof text);
    ck_assert_str_eq(text, "cuda:1, emulated card 1, compute capability 9.0");
    kern_cuda()->close(k);
}
END_TEST

/* All or nothing: one byte less than the plan and nothing is taken; what is taken is what was planned. */
START_TEST(memory_is_planned)
{
    struct kern_config c = small_config();
    const struct kern_device *d = kern_cuda();
    struct err err = {0};
    size_t required = c.weight_bytes + (size_t)c.n_pages * d->page_bytes(&c) + d->work_bytes(&c), page = 4096;
    size_t taken = (required + page - 1) / page * page;
    char want[128];
    emu_card()->memory = required - 1;
    snprintf(want, sizeof want, "VRAM_OOM: device cuda:0 (emulated card 0): required %zu bytes, available %zu bytes", required,
             required - 1);
    open_fails(want);
    emu_card()->memory = taken;
    struct kern *k = d->open(&c, &err);
    ck_assert_msg(k != NULL, "%s", err.msg);
    ck_assert_msg(persist_open((struct cuda *)k, &err), "%s", err.msg);
    ck_assert_uint_eq(emu_taken(), taken);
    d->close(k);
    ck_assert_uint_eq(emu_taken(), 0);
}
END_TEST

/* Whichever launch fails, the step says so, and every later step too: such an error does not go away. */
START_TEST(failures_in_service)
{
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 16};
    struct row row = pair_row(0, 0, 0);
    struct step_out out;
    struct tiny_spec spec = spec_of("gptoss", "MXFP4");
    spec.n_layer = 1;
    for (int n = 1;; n++) {
        struct pair p = open_spec(&spec, o);
        struct err err = {0};
        pair_pages(&p, 1, 1);
        emu_card()->fail_launch = n;
        bool ok = adapter_step(p.got, &row, 1, &out, NULL, &err);
        bool reached = emu_card()->fail_launch == 0;
        ck_assert_int_eq(ok, !reached);
        if (reached) {
            ck_assert_int_eq(err.code, ERR_CUDA);
            ck_assert_msg(strncmp(err.msg, "CUDA_ERROR: ", 12) == 0, "%s", err.msg);
            ck_assert(!adapter_step(p.got, &row, 1, &out, NULL, &err));
        }
        emu_card()->fail_launch = 0;
        close_pair(&p);
        if (!reached)
            break;
        ck_assert_int_lt(n, 1000);
    }
}
END_TEST

/* The same with one kernel, which is the step's only launch. */
START_TEST(failures_of_one_kernel)
{
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 16, .device = persistent()};
    struct row row = pair_row(0, 0, 0);
    struct tiny_spec spec = spec_of("smollm2", "Q8_0");
    struct pair p = open_spec(&spec, o);
    for (int n = 1; n <= 2; n++)
        for (int steps = 0; steps < 2; steps++) { /* while it is recorded, and run again */
            struct step_out out;
            struct err err = {0};
            adapter_close(p.got);
            p.got = adapter_open(p.model, &o, &err);
            ck_assert_msg(p.got != NULL, "%s", err.msg);
            pair_pages(&p, 1, 1);
            for (int i = 0; i < steps; i++)
                ck_assert(adapter_step(p.got, &row, 1, &out, NULL, &err));
            emu_card()->fail_launch = n;
            bool ok = adapter_step(p.got, &row, 1, &out, NULL, &err);
            ck_assert_int_eq(ok, n == 2);
            ck_assert(ok || strstr(err.msg, "persistent kernel") != NULL);
            emu_card()->fail_launch = 0;
            ck_assert_int_eq(adapter_step(p.got, &row, 1, &out, NULL, &err), ok);
        }
    close_pair(&p);
}
END_TEST

/* Whichever call of the step that records it fails: a program that is not on the card is not run, and every later step says so. */
START_TEST(failures_of_recording)
{
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 16, .device = persistent()};
    struct row row = pair_row(0, 0, 0);
    struct tiny_spec spec = spec_of("smollm2", "Q8_0");
    struct pair p = open_spec(&spec, o);
    int of_program = 0;
    bool reached = true;
    for (int n = 1; reached; n++) {
        struct step_out out;
        struct err err = {0};
        adapter_close(p.got);
        p.got = adapter_open(p.model, &o, &err);
        ck_assert_msg(p.got != NULL, "%s", err.msg);
        pair_pages(&p, 1, 1);
        emu_card()->fail_call = n;
        bool ok = adapter_step(p.got, &row, 1, &out, NULL, &err);
        reached = emu_card()->fail_call == 0;
        emu_card()->fail_call = 0;
        ck_assert_int_eq(ok, !reached);
        ck_assert(ok || err.code == ERR_CUDA);
        of_program += !ok && strstr(err.msg, "persistent kernel's program: ") != NULL;
        ck_assert_int_eq(adapter_step(p.got, &row, 1, &out, NULL, &err), ok);
        ck_assert_int_lt(n, 100);
    }
    ck_assert_int_eq(of_program, 1);
    close_pair(&p);
}
END_TEST

/* Whichever call fails while a model is opened, loaded, used and graphs are made: somebody says so, and all is given back. */
START_TEST(failures_of_every_call)
{
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 4, .device = kern_cuda()};
    struct row row = pair_row(0, 0, 0);
    struct tiny_spec spec = spec_of("gptoss", "Q8_0");
    spec.n_layer = 1;
    struct pair p = open_spec(&spec, o);
    adapter_close(p.got);
    for (int n = 1, steps = 0; steps < 4; n++) {
        struct step_out out;
        struct err err = {0};
        emu_card()->fail_call = n;
        p.got = adapter_open(p.model, &o, &err);
        bool ok = p.got != NULL;
        for (steps = 0; ok && steps < 4; steps++)
            ok = adapter_step(p.got, &row, 1, &out, NULL, &err);
        ck_assert_int_eq(emu_card()->fail_call == 0, !ok);
        if (!ok) {
            ck_assert_msg(err.code == (steps > 0 ? ERR_CUDA : ERR_DEVICE) || err.code == ERR_CUDA, "code %d", (int)err.code);
            ck_assert_msg(strstr(err.msg, "illegal memory access") != NULL, "call %d: %s", n, err.msg);
        }
        emu_card()->fail_call = 0;
        adapter_close(p.got);
        ck_assert_int_eq(emu_alive(), 0);
        ck_assert_int_lt(n, 1000);
    }
    p.got = NULL;
    close_pair(&p);
}
END_TEST

/* Cards that do not take the kernel say why, and go on without it; so when any call fails meanwhile. */
START_TEST(cards_without_one_kernel)
{
    static const struct {
        int capability, together;
        const char *message;
    } cards[] = {{80, 4, "is for compute capability 8.0"}, {90, 0, "no cooperative launches"}, {90, 3, "too many blocks"}};
    struct kern_config c = small_config();
    struct err err = {0};
    for (int i = 0; i < 3; i++) {
        emu_card()->capability = cards[i].capability;
        emu_card()->together = cards[i].together;
        struct kern *k = kern_cuda()->open(&c, &err);
        long alive = emu_alive();
        ck_assert_msg(k != NULL, "%s", err.msg);
        ck_assert(!persist_open((struct cuda *)k, &err));
        ck_assert_msg(strstr(err.msg, cards[i].message) != NULL, "%s", err.msg);
        ck_assert_int_eq(emu_alive(), alive);
        ck_assert_int_eq((int)((struct cuda *)k)->persist.blocks, 0);
        kern_cuda()->close(k);
    }
    emu_card()->capability = 90;
    emu_card()->together = 4;
    struct kern *k = kern_cuda()->open(&c, &err);
    long alive = emu_alive();
    for (int n = 1;; n++) {
        emu_card()->fail_call = n;
        bool ok = persist_open((struct cuda *)k, &err);
        ck_assert_int_eq(ok, emu_card()->fail_call > 0);
        emu_card()->fail_call = 0;
        if (ok)
            break;
        ck_assert_int_eq(emu_alive(), alive);
        ck_assert_int_lt(n, 20);
    }
    kern_cuda()->close(k);
    ck_assert_int_eq(emu_alive(), 0);
}
END_TEST

/* Weights much larger than what the card has beside them: the ring goes round many times, rows are cut into pieces. */
START_TEST(upload_in_small_pieces)
{
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 1, .max_logits = 1, .kv_bytes = 1 << 20};
    struct tiny_spec spec = spec_of("llama2", "F32");
    spec.n_layer = 6;
    spec.n_ff = 4096;
    struct row row = pair_row(0, 0, 0);
    struct pair p = open_spec(&spec, o);
    pair_pages(&p, 1, 1);
    step_both(&p, &row, 1);
    close_pair(&p);
    ck_assert_int_eq(emu_alive(), 0);
}
END_TEST

/* Weights that are NaN or infinite: the kernel that packs them sees it. */
START_TEST(damaged_weights)
{
    damage_each_type(kern_cuda());
    damage_each_tensor(kern_cuda());
    ck_assert_int_eq(emu_alive(), 0);
}
END_TEST

/* Memory that is not the card's: refused when the model is opened, noticed later, and the engine ends with the cause. */
START_TEST(weights_that_are_not_resident)
{
    static struct reader rd;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.device = kern_cuda(), .engine = {.resident_check_s = 0.05}});
    struct gen_request q = rig_request(5, 1, 200);
    reader_start(&rd, &r, &q);
    reader_wait_tokens(&rd, 1);
    emu_card()->managed = true;
    reader_finish(&rd);
    ck_assert_int_eq(rd.last.type, GEN_EV_ERROR);
    ck_assert_int_eq(rd.last.code, ERR_CUDA);
    ck_assert_msg(strstr(rd.last.message, "weights not resident") != NULL, "%s", rd.last.message);
    ck_assert(engine_failure(r.engine, &err));
    ck_assert_int_eq(err.code, ERR_CUDA);
    reader_free(&rd);
    rig_close(&r);
    struct adapter_options o = {.n_ctx = 64, .max_seqs = 1, .max_rows = 4};
    struct tiny_spec spec = spec_of("smollm2", "Q8_0");
    struct pair p;
    ck_assert(!pair_open(&p, &spec, o, &kern_ref, kern_cuda(), &err));
    ck_assert_msg(strstr(err.msg, "weights not resident: memory of type 3") != NULL, "%s", err.msg);
    ck_assert_int_eq(emu_alive(), 0);
}
END_TEST

/* A launch that fails while requests run: each ends with CUDA_ERROR, and later ones are refused. */
START_TEST(failure_under_the_engine)
{
    static struct reader rd[3], late;
    struct rig r;
    struct err err = {0};
    rig_open(&r, &(struct rig_options){.device = kern_cuda()});
    struct gen_request q = rig_request(5, 1, 200);
    for (int i = 0; i < 3; i++)
        reader_start(&rd[i], &r, &q);
    reader_wait_tokens(&rd[0], 2);
    emu_card()->fail_launch = 1;
    for (int i = 0; i < 3; i++) {
        reader_finish(&rd[i]);
        ck_assert_int_eq(rd[i].last.code, ERR_CUDA);
        ck_assert_msg(strstr(rd[i].last.message, "CUDA_ERROR: device cuda:0") != NULL, "%s", rd[i].last.message);
        reader_free(&rd[i]);
    }
    ck_assert(!reader_submit(&late, &r, &q, NULL, &err));
    ck_assert_int_eq(err.code, ERR_NOT_READY);
    rig_close(&r);
    ck_assert_int_eq(emu_alive(), 0);
}
END_TEST
static Suite *suite(void)
{
    Suite *s = suite_create("cuda card");
    TCase *card = tcase_create("card");
    tcase_set_timeout(card, 60);
    tcase_add_test(card, cards_that_cannot_be_used);
    tcase_add_test(card, instructions);
    tcase_add_test(card, index_out_of_range);
    tcase_add_test(card, memory_is_planned);
    tcase_add_test(card, failures_in_service);
    tcase_add_test(card, failures_of_one_kernel);
    tcase_add_test(card, failures_of_recording);
    tcase_add_test(card, failures_of_every_call);
    tcase_add_test(card, cards_without_one_kernel);
    tcase_add_test(card, upload_in_small_pieces);
    tcase_add_test(card, damaged_weights);
    tcase_add_test(card, weights_that_are_not_resident);
    tcase_add_test(card, failure_under_the_engine);
    suite_add_tcase(s, card);
    return s;
}

int main(void)
{
    SRunner *r = srunner_create(suite());
    srunner_run_all(r, CK_ENV);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
