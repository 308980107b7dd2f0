#define _GNU_SOURCE
/* The multi interface is used for one request at a time because its poll can be woken from another thread: a worker that
 * is told to stop must not wait for a manager that does not answer. */
#include "daemon/callback.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <curl/curl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct callback {
    struct callback_options o;
    CURLM *multi;
    CURL *easy;
    struct curl_slist *headers;
    size_t received;
    char reason[CURL_ERROR_SIZE];
    atomic_bool stopped;
};

/* The answer's body is of no interest: it is counted, so that a manager cannot make us read for ever. */
static size_t count_answer(char *data, size_t size, size_t n, void *arg)
{
    struct callback *c = arg;
    (void)data;
    c->received += size * n;
    return c->received <= CALLBACK_ANSWER_MAX ? size * n : 0;
}

static bool add_header(struct callback *c, const char *header)
{
    struct curl_slist *list = curl_slist_append(c->headers, header);
    if (list != NULL)
        c->headers = list;
    return list != NULL;
}

static bool add_token(struct callback *c, const char *token)
{
    size_t size = strlen(token) + 32;
    char *header = mem_alloc(size, 1);
    if (header == NULL)
        return false;
    snprintf(header, size, "Authorization: Bearer %s", token);
    bool ok = add_header(c, header);
    explicit_bzero(header, size);
    free(header);
    return ok;
}

struct callback *callback_open(const struct callback_options *o, struct err *err)
{
    struct callback *c = mem_alloc(1, sizeof *c);
    if (c == NULL)
        goto fail;
    c->o = *o;
    if (c->o.backoff_ms == 0)
        c->o.backoff_ms = CALLBACK_BACKOFF_MS;
    if (c->o.timeout_ms == 0)
        c->o.timeout_ms = CALLBACK_TIMEOUT_MS;
    c->multi = curl_multi_init();
    c->easy = curl_easy_init();
    /* "Expect:" keeps libcurl from waiting for a 100 Continue that small servers never send. */
    if (c->multi == NULL || c->easy == NULL || !add_header(c, "Content-Type: application/json") || !add_header(c, "Expect:") ||
        (o->token != NULL && !add_token(c, o->token)))
        goto fail;
    curl_easy_setopt(c->easy, CURLOPT_URL, o->url);
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, o->body);
    curl_easy_setopt(c->easy, CURLOPT_USERAGENT, "inferd/" INFERD_VERSION);
    curl_easy_setopt(c->easy, CURLOPT_TIMEOUT_MS, (long)c->o.timeout_ms);
    curl_easy_setopt(c->easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, count_answer);
    curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, c->reason);
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(c->easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(c->easy, CURLOPT_PROTOCOLS, CURLPROTO_HTTP | CURLPROTO_HTTPS);
#endif
#if LIBCURL_VERSION_NUM >= 0x075700
    curl_easy_setopt(c->easy, CURLOPT_QUICK_EXIT, 1L);    /* callback_stop does not wait for a name server */
#endif
    return c;
fail:
    err_set(err, ERR_INTERNAL, "no memory for the ready callback");
    callback_close(c);
    return NULL;
}

/* One try; true when the manager answered 2xx. */
static bool post_once(struct callback *c, struct err *err)
{
    int running = 1;
    long status = 0;
    c->received = 0;
    c->reason[0] = 0;
    CURLcode result = CURLE_OK;
    CURLMcode mc = curl_multi_add_handle(c->multi, c->easy);
    while (mc == CURLM_OK && running > 0 && !atomic_load(&c->stopped)) {
        mc = curl_multi_perform(c->multi, &running);
        if (mc == CURLM_OK && running > 0)
            mc = curl_multi_poll(c->multi, NULL, 0, c->o.timeout_ms, NULL);
    }
    int left;
    CURLMsg *msg = curl_multi_info_read(c->multi, &left);
    if (msg != NULL && msg->msg == CURLMSG_DONE)
        result = msg->data.result;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_multi_remove_handle(c->multi, c->easy);
    if (atomic_load(&c->stopped))
        return err_set(err, ERR_CANCELLED, "stopped");
    if (mc != CURLM_OK)
        return err_set(err, ERR_SYSTEM, "%s", curl_multi_strerror(mc));
    /* A 2xx whose body is longer than we read is still a yes. */
    bool cut = result == CURLE_WRITE_ERROR && c->received > CALLBACK_ANSWER_MAX;
    if (result != CURLE_OK && !cut)
        return err_set(err, ERR_SYSTEM, "%s", c->reason[0] ? c->reason : curl_easy_strerror(result));
    if (status < 200 || status > 299)
        return err_set(err, ERR_SYSTEM, "status %ld, expected 2xx", status);
    return true;
}

static void wait_ms(struct callback *c, int ms)
{
    uint64_t start = clock_ns();
    double left = ms;
    while (left > 0 && !atomic_load(&c->stopped)) {
        curl_multi_poll(c->multi, NULL, 0, (int)left + 1, NULL);
        left = ms - clock_ms_since(start);
    }
}

bool callback_run(struct callback *c, struct err *err)
{
    int backoff = c->o.backoff_ms;
    for (int i = 1;; i++) {
        if (post_once(c, err))
            return true;
        if (err->code == ERR_CANCELLED)
            return false;
        log_event(LOG_WARN, "callback_retry", LOG_I("try", i), LOG_I("tries", CALLBACK_TRIES), LOG_S("message", err->msg));
        if (i == CALLBACK_TRIES)
            break;
        wait_ms(c, backoff);
        backoff *= 2;
    }
    return err_prefix(err, "the ready callback failed %d times, last", CALLBACK_TRIES);
}

void callback_stop(struct callback *c)
{
    atomic_store(&c->stopped, true);
    curl_multi_wakeup(c->multi);
}

void callback_close(struct callback *c)
{
    if (c == NULL)
        return;
    curl_easy_cleanup(c->easy);
    curl_multi_cleanup(c->multi);
    curl_slist_free_all(c->headers);
    free(c);
}
